#!/usr/bin/env bash
# The Vulkan backend on a real card: builds it, holds every op against doubles (on the card's best matrix units, and on
# those for F16), measures products, attention and training, as `fabric bench` and as `fabric train` run it by default.
#     benchmarks/gpu.sh [--part ops|speed|train] [--debs DIR] [--wheels DIR] [--model SHAPE]
# Needs gcc and python3 (3.10 or newer). DIR of --debs holds Debian packages to unpack first, where
# the Vulkan loader is missing (libvulkan1; NVIDIA's driver wants libglvnd0, libgl1, libglx0 and libegl1 too). DIR of --wheels holds wheels of pyproject.toml's dependencies and of setuptools,
# wheel and gguf: nothing is downloaded. SHAPE is a name of tests/support/shapes.py.
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
    python3 native/spirv.py # keeps what is compiled already, as where no compiler is
    python3 native/texts.py "$work/texts.c"
    for first in 0 1; do # 1: no matrix units for BF16
        find native/backends/*/ native/kernels native/quant -name '*.c' -print0 \
            | xargs -0 gcc -std=c11 -O3 -fno-math-errno -fno-trapping-math -DFB_MATRIX_FIRST=$first native/os.c \
                native/graph/error.c tests/native/ops.c "$work/texts.c" -o "$work/ops-$first" -lm -lpthread -ldl &
    done
    wait
fi
if wanted ops; then
    step "every op against doubles"
    "$work/ops-0" vulkan
    "$work/ops-1" vulkan
fi
if wanted speed; then
    step "speed of products and attention"
    "$work/ops-0" speed vulkan
    "$work/ops-1" speed vulkan
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
bench() { "$work/venv/bin/fabric" bench -m "$work/model.gguf" --device vulkan --ctx 512 "$@"; }
bench --batch 8
bench --batch 8 --rows-at-once 4 --no-checkpointing
bench --batch 8 --checkpointing
for precision in f32 bf16; do bench --precision "$precision"; done
step "eight rows of 512 through train, which chooses the layout; then with submissions of 50 ms, and half of the time asleep"
"$work/venv/bin/python" -c 'import json; print(json.dumps({"text": "".join(f" {i}" for i in range(60000))}))' > "$work/long.jsonl"
long() {
    "$work/venv/bin/fabric" train "$work/long.jsonl" -m "$work/model.gguf" -o "$work/long.gguf" --device vulkan --batch 8 \
        --ctx 512 --rank 16 --run-dir "$work/run-$1" "${@:2}"
}
long dry --dry-run
long plain --steps 12 --metrics - -q
mkdir -p "$work/config/fabric/profiles"
for pace in 'submit_ms = 50' 'duty = 0.5'; do
    printf '[match]\nbackend = "vulkan"\n[run]\n%s\n' "$pace" > "$work/config/fabric/profiles/pace.toml"
    XDG_CONFIG_HOME=$work/config long "${pace%% *}" --steps 4 --metrics - -q
done
step "what the card does best"
"$work/venv/bin/fabric" devices --probe --device vulkan -o "$work/probed.toml" && cat "$work/probed.toml"
step "the same losses as the CPU"
printf '{"text":"One two three four five six seven eight."}\n{"text":"Nine ten eleven twelve."}\n' > "$work/rows.jsonl"
for device in cpu vulkan; do
    "$work/venv/bin/fabric" train "$work/rows.jsonl" -m "$work/model.gguf" -o "$work/$device.gguf" --device "$device" \
        --precision f32 --lr 2e-4 --epochs 1 --batch 1 --ctx 64 --run-dir "$work/run-$device" --metrics - -q
done
