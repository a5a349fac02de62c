# bash completion for fabric; written by tools/pages.py
_fabric() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local command=${COMP_WORDS[1]} words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "prepare template train resume merge quantize eval generate devices convert inspect bench plot --help --version" -- "$cur")); return
    fi
    case "$command:$prev" in
        prepare:-o|prepare:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        prepare:--format) COMPREPLY=($(compgen -W "auto jsonl json csv tsv text paragraphs" -- "$cur")); return ;;
        prepare:--separator) return ;;
        prepare:--as) COMPREPLY=($(compgen -W "chat completion text" -- "$cur")); return ;;
        prepare:--field) return ;;
        prepare:--keep-fields) return ;;
        prepare:--system) return ;;
        prepare:--prompt-template) return ;;
        prepare:--min-chars) return ;;
        prepare:--max-chars) return ;;
        prepare:--balance) return ;;
        prepare:--seed) return ;;
        prepare:--holdout) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        prepare:--stratify) return ;;
        prepare:--on-error) COMPREPLY=($(compgen -W "stop skip" -- "$cur")); return ;;
        template:-m|template:--model) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        template:-o|template:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        template:--template) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        template:--ctx) return ;;
        template:--stride) return ;;
        train:-m|train:--model) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        train:-o|train:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        train:--type) return ;;
        train:--rank) return ;;
        train:--alpha) return ;;
        train:--dropout) return ;;
        train:--modules) return ;;
        train:--seed) return ;;
        train:-a|train:--adapter) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        train:--epochs) return ;;
        train:--steps) return ;;
        train:--lr) return ;;
        train:--schedule) COMPREPLY=($(compgen -W "constant linear cosine exponential" -- "$cur")); return ;;
        train:--warmup-ratio) return ;;
        train:--warmup-steps) return ;;
        train:--lr-min) return ;;
        train:--lora-plus) return ;;
        train:--neftune) return ;;
        train:--weight-decay) return ;;
        train:--clip) return ;;
        train:--optimizer) COMPREPLY=($(compgen -W "adamw sgd" -- "$cur")); return ;;
        train:--batch) return ;;
        train:--ctx) return ;;
        train:--stride) return ;;
        train:--accumulate) return ;;
        train:--template) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        train:--precision) COMPREPLY=($(compgen -W "auto f32 bf16" -- "$cur")); return ;;
        train:--threads) return ;;
        train:--device) return ;;
        train:--val) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        train:--eval-every) return ;;
        train:--patience) return ;;
        train:--checkpoint-every) return ;;
        train:--checkpoint-minutes) return ;;
        train:--keep) return ;;
        train:--run-dir) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        train:--metrics) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        train:--config) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        resume:-o|resume:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        resume:--metrics) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        resume:--threads) return ;;
        resume:--epochs) return ;;
        resume:--steps) return ;;
        merge:-m|merge:--model) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        merge:-a|merge:--adapter) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        merge:-o|merge:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        merge:--type) return ;;
        merge:--threads) return ;;
        quantize:-o|quantize:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        quantize:--type) return ;;
        quantize:--output-type) return ;;
        quantize:--tensor) return ;;
        quantize:--calibrate) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        quantize:--imatrix) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        quantize:--save-imatrix) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        quantize:--threads) return ;;
        eval:-m|eval:--model) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        eval:-a|eval:--adapter) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        eval:--accuracy) COMPREPLY=($(compgen -W "likelihood generated" -- "$cur")); return ;;
        eval:--rows) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        eval:--labels) return ;;
        eval:--ctx) return ;;
        eval:--stride) return ;;
        eval:--template) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        eval:--precision) COMPREPLY=($(compgen -W "auto f32 bf16" -- "$cur")); return ;;
        eval:--threads) return ;;
        eval:--device) return ;;
        generate:-m|generate:--model) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        generate:-a|generate:--adapter) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        generate:-o|generate:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        generate:--prompt) return ;;
        generate:--system) return ;;
        generate:--max-tokens) return ;;
        generate:--temperature) return ;;
        generate:--top-k) return ;;
        generate:--top-p) return ;;
        generate:--min-p) return ;;
        generate:--repeat-penalty) return ;;
        generate:--repeat-window) return ;;
        generate:--choices) return ;;
        generate:--seed) return ;;
        generate:--stop) return ;;
        generate:--ctx) return ;;
        generate:--batch) return ;;
        generate:--template) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        generate:--precision) COMPREPLY=($(compgen -W "auto f32 bf16" -- "$cur")); return ;;
        generate:--threads) return ;;
        generate:--device) return ;;
        devices:-o|devices:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        devices:-m|devices:--model) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        devices:--ctx) return ;;
        devices:--precision) COMPREPLY=($(compgen -W "auto f32 bf16" -- "$cur")); return ;;
        devices:--device) return ;;
        convert:-o|convert:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        convert:-m|convert:--model) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        convert:--type) return ;;
        bench:-m|bench:--model) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        bench:--ctx) return ;;
        bench:--batch) return ;;
        bench:--rows-at-once) return ;;
        bench:--trained-every) return ;;
        bench:--rank) return ;;
        bench:--modules) return ;;
        bench:--precision) COMPREPLY=($(compgen -W "auto f32 bf16" -- "$cur")); return ;;
        bench:--steps) return ;;
        bench:--threads) return ;;
        bench:--device) return ;;
        bench:--isa) return ;;
        plot:-o|plot:--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;
        plot:-c|plot:--columns) return ;;
        plot:--smooth) return ;;
        plot:--title) return ;;
        plot:--width) return ;;
        plot:--height) return ;;
    esac
    case "$command" in
        prepare) words="-o --output --format --separator --as --field --keep-fields --system --prompt-template --normalize --min-chars --max-chars --dedup --balance --shuffle --no-shuffle --seed --holdout --stratify --on-error -q --quiet --json --strict --debug -h --help" ;;
        template) words="-m --model -o --output --template --tokens --check --ctx --stride -q --quiet --json --strict --debug -h --help" ;;
        train) words="-m --model -o --output --full --no-full --type --rank --alpha --rslora --no-rslora --dropout --modules --seed -a --adapter --epochs --steps --lr --schedule --warmup-ratio --warmup-steps --lr-min --lora-plus --neftune --weight-decay --clip --optimizer --batch --ctx --stride --accumulate --pack --no-pack --shuffle --no-shuffle --template --precision --checkpointing --no-checkpointing --threads --device --val --eval-every --patience --checkpoint-every --checkpoint-minutes --keep --run-dir --metrics --config --dry-run -q --quiet --json --strict --debug -h --help" ;;
        resume) words="-o --output --metrics --threads --epochs --steps -q --quiet --json --strict --debug -h --help" ;;
        merge) words="-m --model -a --adapter -o --output --type --errors --threads -q --quiet --json --strict --debug -h --help" ;;
        quantize) words="-o --output --type --output-type --tensor --calibrate --imatrix --save-imatrix --errors --threads -q --quiet --json --strict --debug -h --help" ;;
        eval) words="-m --model -a --adapter --compare --accuracy --llama-perplexity --rows --markdown --labels --ctx --stride --template --precision --threads --device -q --quiet --json --strict --debug -h --help" ;;
        generate) words="-m --model -a --adapter -o --output --prompt --raw --chat --system --max-tokens --temperature --top-k --top-p --min-p --repeat-penalty --repeat-window --choices --seed --stop --ctx --batch --template --precision --threads --device -q --quiet --json --strict --debug -h --help" ;;
        devices) words="--plan --probe -o --output -m --model --full --no-full --ctx --precision --device -q --quiet --json --strict --debug -h --help" ;;
        convert) words="-o --output -m --model --type -q --quiet --json --strict --debug -h --help" ;;
        inspect) words="--tensors --chat-template -q --quiet --json --strict --debug -h --help" ;;
        bench) words="-m --model --ctx --batch --rows-at-once --trained-every --rank --modules --precision --checkpointing --no-checkpointing --steps --threads --device --isa -q --quiet --json --strict --debug -h --help" ;;
        plot) words="-o --output --svg -c --columns --follow --smooth --title --width --height -q --quiet --json --strict --debug -h --help" ;;
    esac
    case "$cur" in
        -*) COMPREPLY=($(compgen -W "$words" -- "$cur")) ;;
        *) COMPREPLY=($(compgen -f -- "$cur")) ;;
    esac
}
complete -o filenames -F _fabric fabric
