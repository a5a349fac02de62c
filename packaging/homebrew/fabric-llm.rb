class FabricLlm < Formula
  include Language::Python::Virtualenv

  desc "Fine-tune GGUF language models on the device they will run on"
  homepage "https://pypi.org/project/fabric-llm/"
  url "@URL@"
  sha256 "@SHA256@"
  license "Apache-2.0"

  depends_on "numpy"
  depends_on "python@3.14"

  uses_from_macos "libffi"

@RESOURCES@
  def install
    virtualenv_install_with_resources
    man1.install Dir["man/*.1"]
    man5.install Dir["man/*.5"]
    generate_completions_from_executable(bin/"fabric", "completion", shells: [:bash, :zsh, :fish])
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/fabric --version")
    assert_match "cpu", shell_output("#{bin}/fabric devices")
    (testpath/"rows.csv").write "question,answer\nWhat?,That.\n"
    assert_match "That.", shell_output("#{bin}/fabric prepare rows.csv")
  end
end
