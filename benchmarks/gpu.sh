#!/usr/bin/env bash
# The Vulkan backend on a real card: builds it, holds every op against doubles, measures products, attention and training.
#     benchmarks/gpu.sh [--part ops|speed|train] [--debs DIR] [--wheels DIR] [--model SHAPE]
# Needs gcc and, for the training part, python3 (3.10 or newer). DIR of --debs holds Debian packages to unpack first, where
# the Vulkan loader is missing (libvulkan1; NVIDIA's driver wants libglvnd0, libgl1, libglx0 and libegl1 too). DIR of --wheels holds wheels of pyproject.toml's dependencies and of setuptools,
# wheel and gguf: nothing is downloaded. SHAPE is a name of tests/support/random_models.py.
set -euo pipefail
cd "$(dirname "$0")/.."
part='' debs='' wheels='' model=qwen3-1.7b
while [ $# -gt 0 ]; do
    case $1 in
    --part) part=$2; shift 2 ;;
    --debs) debs=$2; shift 2 ;;
    --wheels) wheels=$2; shift 2 ;;
    --model) model=$2; shift 2 ;;
    *) echo "benchmarks/gpu.sh: there is no option $1" >&2; exit 2 ;;
    esac
done
step() { printf '\n== %s\n' "$*"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "$debs" ]; then
    step "packages"
    for package in "$debs"/*.deb; do dpkg -x "$package" /; done
    ldconfig
fi
# Drivers that containers mount are not where the loader looks.
for manifest in /usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json /etc/vulkan/icd.d/nvidia_icd.json; do
    [ -e "$manifest" ] && [ -z "${VK_DRIVER_FILES:-}" ] && export VK_DRIVER_FILES=$manifest
done

wanted() { [ -z "$part" ] || [ "$part" = "$1" ]; }

if wanted ops || wanted speed; then
    step "build"
    find native/backends/cpu native/backends/vulkan native/kernels native/quant -name '*.c' -print0 \
        | xargs -0 gcc -std=c11 -O3 -fno-math-errno -fno-trapping-math native/os.c native/graph/error.c tests/native/ops.c \
            -o "$work/ops" -lm -lpthread -ldl
fi
if wanted ops; then
    step "every op against doubles"
    "$work/ops" vulkan
fi
if wanted speed; then
    step "speed of products and attention"
    "$work/ops" speed vulkan
fi
wanted train || exit 0
[ -n "$wheels" ] || { step "no --wheels: no training"; exit 0; }
step "a training step of $model with random weights"
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install --quiet --no-index --find-links "$wheels" "$@"; }
pip setuptools wheel cffi gguf
pip --no-build-isolation --editable .
"$work/venv/bin/fabric" devices
"$work/venv/bin/python" -m tests.support.random_models "$model" --type Q8_0 -o "$work/model.gguf"
bench() { "$work/venv/bin/fabric" bench -m "$work/model.gguf" --device vulkan --tokens 512 "$@"; }
bench --rows 8
bench --rows 8 --rows-at-once 4 --no-checkpointing
bench --rows 8 --checkpointing
for precision in f32 bf16; do bench --precision "$precision"; done
step "the same losses as the CPU"
printf '{"text":"One two three four five six seven eight."}\n{"text":"Nine ten eleven twelve."}\n' > "$work/rows.jsonl"
for device in cpu vulkan; do
    "$work/venv/bin/fabric" train "$work/rows.jsonl" -m "$work/model.gguf" -o "$work/$device.gguf" --device "$device" \
        --precision f32 --batch 1 --ctx 64 --run-dir "$work/run-$device" --metrics - -q
done
