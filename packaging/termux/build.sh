TERMUX_PKG_HOMEPAGE=https://pypi.org/project/fabric-llm/
TERMUX_PKG_DESCRIPTION="Fine-tune GGUF language models on the device they will run on"
TERMUX_PKG_LICENSE="Apache-2.0"
TERMUX_PKG_MAINTAINER="@termux"
TERMUX_PKG_VERSION="@VERSION@"
TERMUX_PKG_SRCURL=https://files.pythonhosted.org/packages/source/f/fabric-llm/fabric_llm-${TERMUX_PKG_VERSION}.tar.gz
TERMUX_PKG_SHA256=@SHA256@
TERMUX_PKG_DEPENDS="libffi, python, python-numpy, python-pip"
TERMUX_PKG_PYTHON_COMMON_DEPS="cffi, setuptools, wheel"
TERMUX_PKG_PYTHON_TARGET_DEPS="@TARGET_DEPS@"
TERMUX_PKG_BUILD_IN_SRC=true
TERMUX_PKG_AUTO_UPDATE=true

termux_step_make_install() {
	# The source package has the Vulkan kernels compiled, so no shader compiler runs here.
	pip install --no-deps --no-build-isolation --prefix="$TERMUX_PREFIX" .
}

termux_step_create_debscripts() {
	cat <<- EOF > ./postinst
	#!$TERMUX_PREFIX/bin/sh
	echo "Installing dependencies through pip..."
	pip3 install ${TERMUX_PKG_PYTHON_TARGET_DEPS//, / }
	EOF
}
