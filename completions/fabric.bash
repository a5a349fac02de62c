# bash completion for fabric; written by tools/pages.py
_fabric_add() { # lines become words, spaces and all
    local line
    while IFS= read -r line; do COMPREPLY+=("$line"); done
}
_fabric_nothing() { return; }
_fabric_words() { _fabric_add < <(compgen -W "$*" -- "$cur"); }
_fabric_list() {
    local before=""
    case $cur in *,*) before=${cur%,*}, ;; esac
    _fabric_add < <(compgen -P "$before" -W "$*" -- "${cur##*,}")
}
_fabric_pair() { # NAME=word; bash takes it apart at the sign where it is not quoted
    case $pair$cur in *=*) ;; *) return ;; esac
    local before=""
    case $cur in *=*) before=${cur%=*}= ;; esac
    _fabric_add < <(compgen -P "$before" -W "$*" -- "${cur##*=}")
}
_fabric_files() { # patterns; without one all files. A pattern that ends in a slash is of folders
    local pattern
    [ $# -gt 0 ] || { _fabric_add < <(compgen -f -- "$cur"); return; }
    for pattern; do
        case $cur$pattern in
            .*/) _fabric_add < <(compgen -G "$pattern" | sed 's:/$::') ;;
            */) ;;
            *) _fabric_add < <(compgen -f -X "!$pattern" -- "$cur") ;;
        esac
    done
    [ ${#COMPREPLY[@]} -gt 0 ] && [ -z "$cur" ] && return
    _fabric_add < <(compgen -d -- "$cur")
}
_fabric() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        _fabric_words "prepare template train resume runs merge quantize eval generate devices convert inspect bench plot report completion help --help --version"; return
    fi
    # bash takes --flag=value apart at the sign
    local at=$COMP_CWORD pair=
    if [ "$cur" = "=" ]; then cur=""; at=$((at+1)); fi
    if [ "${COMP_WORDS[at-1]}" = "=" ]; then
        at=$((at-2)) prev=${COMP_WORDS[at]}
        case $prev in -*) ;; *) pair="=" prev=${COMP_WORDS[at-1]} ;; esac
        if [ "$prev" = "=" ]; then prev=${COMP_WORDS[at-2]}; fi
    fi
    case "$command:$prev" in
        prepare:--format) _fabric_words 'auto' 'jsonl' 'json' 'csv' 'tsv' 'text' 'paragraphs'; return ;;
        prepare:--separator) _fabric_nothing; return ;;
        prepare:--as) _fabric_words 'chat' 'completion' 'text'; return ;;
        prepare:--field) _fabric_nothing; return ;;
        prepare:--keep-fields) _fabric_nothing; return ;;
        prepare:--system) _fabric_nothing; return ;;
        prepare:--prompt-template) _fabric_nothing; return ;;
        prepare:--min-chars) _fabric_nothing; return ;;
        prepare:--max-chars) _fabric_nothing; return ;;
        prepare:--balance) _fabric_nothing; return ;;
        prepare:--seed) _fabric_nothing; return ;;
        prepare:--holdout) _fabric_files; return ;;
        prepare:--stratify) _fabric_nothing; return ;;
        prepare:--on-error) _fabric_words 'stop' 'skip'; return ;;
        prepare:-o|prepare:--output) _fabric_files; return ;;
        template:-m|template:--model) _fabric_files '*.gguf'; return ;;
        template:--template) _fabric_files; return ;;
        template:--ctx) _fabric_nothing; return ;;
        template:--stride) _fabric_nothing; return ;;
        template:--train) _fabric_words 'all' 'last'; return ;;
        template:--on-error) _fabric_words 'stop' 'skip'; return ;;
        template:-o|template:--output) _fabric_files; return ;;
        train:-m|train:--model) _fabric_files '*.gguf'; return ;;
        train:-o|train:--output) _fabric_files; return ;;
        train:--type) _fabric_words 'keep' 'f32' 'f16' 'bf16' 'q8_0' 'q6_k' 'q5_k_m' 'q5_k_s' 'q5_k' 'q5_1' 'q5_0' 'q4_k_m' 'q4_k_s' 'q4_k' 'q4_1' 'q4_0'; return ;;
        train:--rank) _fabric_nothing; return ;;
        train:--alpha) _fabric_nothing; return ;;
        train:--dropout) _fabric_nothing; return ;;
        train:--modules) _fabric_list 'usual' 'attn' 'conv' 'delta' 'ffn' 'ple' 'attn_q' 'attn_k' 'attn_v' 'attn_output' 'ffn_gate' 'ffn_up' 'ffn_down' 'attn_qkv' 'output' 'shortconv.in_proj' 'shortconv.out_proj' 'inp_gate' 'proj' 'attn_gate' 'ssm_beta' 'ssm_alpha' 'all' 'ssm_out'; return ;;
        train:--seed) _fabric_nothing; return ;;
        train:-a|train:--adapter) _fabric_files '*.gguf'; return ;;
        train:--epochs) _fabric_nothing; return ;;
        train:--steps) _fabric_nothing; return ;;
        train:--lr) _fabric_nothing; return ;;
        train:--schedule) _fabric_words 'constant' 'linear' 'cosine' 'exponential'; return ;;
        train:--warmup-ratio) _fabric_nothing; return ;;
        train:--warmup-steps) _fabric_nothing; return ;;
        train:--lr-min) _fabric_nothing; return ;;
        train:--lora-plus) _fabric_nothing; return ;;
        train:--neftune) _fabric_nothing; return ;;
        train:--weight-decay) _fabric_nothing; return ;;
        train:--clip) _fabric_nothing; return ;;
        train:--optimizer) _fabric_words 'adamw' 'sgd'; return ;;
        train:--batch) _fabric_nothing; return ;;
        train:--ctx) _fabric_nothing; return ;;
        train:--stride) _fabric_nothing; return ;;
        train:--accumulate) _fabric_nothing; return ;;
        train:--sync-every) _fabric_nothing; return ;;
        train:--rank-shares) _fabric_nothing; return ;;
        train:--template) _fabric_files; return ;;
        train:--train) _fabric_words 'all' 'last'; return ;;
        train:--on-error) _fabric_words 'stop' 'skip'; return ;;
        train:--precision) _fabric_words 'auto' 'f32' 'bf16'; return ;;
        train:--weights) _fabric_words 'auto' 'blocks' '16bit'; return ;;
        train:--threads) _fabric_nothing; return ;;
        train:--device) _fabric_words 'auto' 'cpu' 'cuda' 'metal' 'sycl' 'vulkan'; return ;;
        train:--val) _fabric_files '*.jsonl'; return ;;
        train:--eval-every) _fabric_nothing; return ;;
        train:--sample) _fabric_files '*.jsonl'; return ;;
        train:--sample-every) _fabric_nothing; return ;;
        train:--patience) _fabric_nothing; return ;;
        train:--checkpoint-every) _fabric_nothing; return ;;
        train:--checkpoint-minutes) _fabric_nothing; return ;;
        train:--keep) _fabric_nothing; return ;;
        train:--run-dir) _fabric_files '*/'; return ;;
        train:--name) _fabric_nothing; return ;;
        train:--metrics) _fabric_files; return ;;
        train:--track) _fabric_list 'tensorboard' 'wandb' 'mlflow'; return ;;
        train:--config) _fabric_files '*.toml'; return ;;
        resume:-o|resume:--output) _fabric_files; return ;;
        resume:--metrics) _fabric_files; return ;;
        resume:--track) _fabric_words 'tensorboard' 'wandb' 'mlflow'; return ;;
        resume:--threads) _fabric_nothing; return ;;
        resume:--epochs) _fabric_nothing; return ;;
        resume:--steps) _fabric_nothing; return ;;
        runs:--keep) _fabric_nothing; return ;;
        merge:-m|merge:--model) _fabric_files '*.gguf'; return ;;
        merge:-a|merge:--adapter) _fabric_files '*.gguf'; return ;;
        merge:-o|merge:--output) _fabric_files; return ;;
        merge:--type) _fabric_words 'keep' 'f32' 'f16' 'bf16' 'q8_0' 'q6_k' 'q5_k_m' 'q5_k_s' 'q5_k' 'q5_1' 'q5_0' 'q4_k_m' 'q4_k_s' 'q4_k' 'q4_1' 'q4_0'; return ;;
        merge:--threads) _fabric_nothing; return ;;
        quantize:-o|quantize:--output) _fabric_files; return ;;
        quantize:--type) _fabric_words 'f32' 'f16' 'bf16' 'q8_0' 'q6_k' 'q5_k_m' 'q5_k_s' 'q5_k' 'q5_1' 'q5_0' 'q4_k_m' 'q4_k_s' 'q4_k' 'q4_1' 'q4_0'; return ;;
        quantize:--output-type) _fabric_words 'f32' 'f16' 'bf16' 'q8_0' 'q6_k' 'q5_k' 'q5_1' 'q5_0' 'q4_k' 'q4_1' 'q4_0'; return ;;
        quantize:--threads) _fabric_nothing; return ;;
        quantize:--tensor) _fabric_pair 'f32' 'f16' 'bf16' 'q8_0' 'q6_k' 'q5_k' 'q5_1' 'q5_0' 'q4_k' 'q4_1' 'q4_0'; return ;;
        quantize:--calibrate) _fabric_files '*.jsonl'; return ;;
        quantize:--imatrix) _fabric_files '*.gguf'; return ;;
        quantize:--save-imatrix) _fabric_files; return ;;
        eval:-m|eval:--model) _fabric_files '*.gguf'; return ;;
        eval:-a|eval:--adapter) _fabric_files '*.gguf'; return ;;
        eval:--accuracy) _fabric_words 'likelihood' 'generated'; return ;;
        eval:--labels) _fabric_nothing; return ;;
        eval:--measures) _fabric_list 'exact' 'rouge-l' 'chrf'; return ;;
        eval:--max-tokens) _fabric_nothing; return ;;
        eval:--judge) _fabric_files '*.gguf'; return ;;
        eval:--against) _fabric_files '*.gguf'; return ;;
        eval:--answers) _fabric_nothing; return ;;
        eval:--judge-prompt) _fabric_files; return ;;
        eval:--ctx) _fabric_nothing; return ;;
        eval:--stride) _fabric_nothing; return ;;
        eval:--template) _fabric_files; return ;;
        eval:--train) _fabric_words 'all' 'last'; return ;;
        eval:--precision) _fabric_words 'auto' 'f32' 'bf16'; return ;;
        eval:--threads) _fabric_nothing; return ;;
        eval:--device) _fabric_words 'auto' 'cpu' 'cuda' 'metal' 'sycl' 'vulkan'; return ;;
        eval:--rows) _fabric_files; return ;;
        generate:-m|generate:--model) _fabric_files '*.gguf'; return ;;
        generate:--prompt) _fabric_nothing; return ;;
        generate:--system) _fabric_nothing; return ;;
        generate:-a|generate:--adapter) _fabric_files '*.gguf'; return ;;
        generate:--max-tokens) _fabric_nothing; return ;;
        generate:--temperature) _fabric_nothing; return ;;
        generate:--top-k) _fabric_nothing; return ;;
        generate:--top-p) _fabric_nothing; return ;;
        generate:--min-p) _fabric_nothing; return ;;
        generate:--repeat-penalty) _fabric_nothing; return ;;
        generate:--repeat-window) _fabric_nothing; return ;;
        generate:--choices) _fabric_nothing; return ;;
        generate:--seed) _fabric_nothing; return ;;
        generate:--stop) _fabric_nothing; return ;;
        generate:--ctx) _fabric_nothing; return ;;
        generate:--batch) _fabric_nothing; return ;;
        generate:--template) _fabric_files; return ;;
        generate:--precision) _fabric_words 'auto' 'f32' 'bf16'; return ;;
        generate:--threads) _fabric_nothing; return ;;
        generate:--device) _fabric_words 'auto' 'cpu' 'cuda' 'metal' 'sycl' 'vulkan'; return ;;
        generate:-o|generate:--output) _fabric_files; return ;;
        devices:-o|devices:--output) _fabric_files; return ;;
        devices:-m|devices:--model) _fabric_files '*.gguf'; return ;;
        devices:--ctx) _fabric_nothing; return ;;
        devices:--precision) _fabric_words 'auto' 'f32' 'bf16'; return ;;
        devices:--weights) _fabric_words 'auto' 'blocks' '16bit'; return ;;
        devices:--device) _fabric_words 'auto' 'cpu' 'cuda' 'metal' 'sycl' 'vulkan'; return ;;
        convert:-o|convert:--output) _fabric_files; return ;;
        convert:-m|convert:--model) _fabric_files '*.gguf'; return ;;
        convert:--type) _fabric_words 'keep' 'f32' 'f16' 'bf16'; return ;;
        bench:-m|bench:--model) _fabric_files '*.gguf'; return ;;
        bench:--ctx) _fabric_nothing; return ;;
        bench:--batch) _fabric_nothing; return ;;
        bench:--rows-at-once) _fabric_nothing; return ;;
        bench:--trained-every) _fabric_nothing; return ;;
        bench:--rank) _fabric_nothing; return ;;
        bench:--modules) _fabric_list 'usual' 'attn' 'conv' 'delta' 'ffn' 'ple' 'attn_q' 'attn_k' 'attn_v' 'attn_output' 'ffn_gate' 'ffn_up' 'ffn_down' 'attn_qkv' 'output' 'shortconv.in_proj' 'shortconv.out_proj' 'inp_gate' 'proj' 'attn_gate' 'ssm_beta' 'ssm_alpha' 'all' 'ssm_out'; return ;;
        bench:--precision) _fabric_words 'auto' 'f32' 'bf16'; return ;;
        bench:--weights) _fabric_words 'auto' 'blocks' '16bit'; return ;;
        bench:--steps) _fabric_nothing; return ;;
        bench:--threads) _fabric_nothing; return ;;
        bench:--device) _fabric_words 'auto' 'cpu' 'cuda' 'metal' 'sycl' 'vulkan'; return ;;
        bench:--isa) _fabric_words 'generic' 'avx2' 'avx512' 'avx512_bf16' 'neon' 'neon_bf16'; return ;;
        plot:-o|plot:--output) _fabric_files; return ;;
        plot:-c|plot:--columns) _fabric_list 'loss' 'val_loss' 'lr' 'grad_norm' 'tokens_per_s'; return ;;
        plot:--smooth) _fabric_nothing; return ;;
        plot:--title) _fabric_nothing; return ;;
        plot:--width) _fabric_nothing; return ;;
        plot:--height) _fabric_nothing; return ;;
        report:--eval) _fabric_files; return ;;
        report:-o|report:--output) _fabric_files; return ;;
        report:--title) _fabric_nothing; return ;;
        report:--port) _fabric_nothing; return ;;
    esac
    case "$command" in
        prepare)
            case $cur in -*) _fabric_words "--format --separator --as --field --keep-fields --system --prompt-template --normalize --no-normalize --min-chars --max-chars --dedup --no-dedup --balance --shuffle --no-shuffle --seed --holdout --stratify --on-error -o --output -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files ;; esac ;;
        template)
            case $cur in -*) _fabric_words "-m --model --template --tokens --no-tokens --check --ctx --stride --train --on-error -o --output -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '*.jsonl' ;; esac ;;
        train)
            case $cur in -*) _fabric_words "-m --model -o --output --full --no-full --type --rank --alpha --rslora --no-rslora --dropout --modules --seed -a --adapter --epochs --steps --lr --schedule --warmup-ratio --warmup-steps --lr-min --lora-plus --neftune --weight-decay --clip --optimizer --batch --ctx --stride --accumulate --sync-every --rank-shares --pack --no-pack --shuffle --no-shuffle --template --train --on-error --precision --weights --checkpointing --no-checkpointing --threads --device --val --eval-every --sample --sample-every --patience --checkpoint-every --checkpoint-minutes --keep --run-dir --name --metrics --track --config --dry-run -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '*.jsonl' ;; esac ;;
        resume)
            case $cur in -*) _fabric_words "-o --output --metrics --track --threads --epochs --steps -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '.fabric/runs/*/' ;; esac ;;
        runs)
            case $cur in -*) _fabric_words "--compare --prune --keep --dry-run -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '.fabric/runs/*/' '*.jsonl' ;; esac ;;
        merge)
            case $cur in -*) _fabric_words "-m --model -a --adapter -o --output --type --threads --average --no-average --errors --no-errors -q --quiet --json --strict --debug -h --help" ;; *) _fabric_nothing ;; esac ;;
        quantize)
            case $cur in -*) _fabric_words "-o --output --type --output-type --threads --tensor --calibrate --imatrix --save-imatrix --errors --no-errors -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '*.gguf' ;; esac ;;
        eval)
            case $cur in -*) _fabric_words "-m --model -a --adapter --compare --no-compare --accuracy --llama-perplexity --no-llama-perplexity --labels --measures --max-tokens --judge --against --answers --judge-prompt --ctx --stride --template --train --precision --threads --device --rows --markdown --no-markdown -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '*.jsonl' ;; esac ;;
        generate)
            case $cur in -*) _fabric_words "-m --model --prompt --raw --no-raw --system -a --adapter --max-tokens --temperature --top-k --top-p --min-p --repeat-penalty --repeat-window --choices --seed --stop --ctx --batch --template --precision --threads --device -o --output --chat -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '*.jsonl' ;; esac ;;
        devices)
            case $cur in -*) _fabric_words "--plan --probe -o --output -m --model --full --no-full --ctx --precision --weights --device -q --quiet --json --strict --debug -h --help" ;; *) _fabric_nothing ;; esac ;;
        convert)
            case $cur in -*) _fabric_words "-o --output -m --model --type -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '*/' '*.gguf' ;; esac ;;
        inspect)
            case $cur in -*) _fabric_words "--tensors --no-tensors --chat-template -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '*.gguf' ;; esac ;;
        bench)
            case $cur in -*) _fabric_words "-m --model --ctx --batch --rows-at-once --trained-every --rank --modules --precision --weights --checkpointing --no-checkpointing --steps --threads --device --isa -q --quiet --json --strict --debug -h --help" ;; *) _fabric_nothing ;; esac ;;
        plot)
            case $cur in -*) _fabric_words "-o --output --svg --no-svg -c --columns --follow --smooth --title --width --height -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '.fabric/runs/*/' '*.jsonl' ;; esac ;;
        report)
            case $cur in -*) _fabric_words "--eval -o --output --title --follow --port -q --quiet --json --strict --debug -h --help" ;; *) _fabric_files '.fabric/runs/*/' '*.jsonl' ;; esac ;;
        completion)
            case $cur in -*) _fabric_words "-q --quiet --json --strict --debug -h --help" ;; *) _fabric_words 'bash' 'zsh' 'fish' 'powershell' ;; esac ;;
        help) _fabric_words "prepare template train resume runs merge quantize eval generate devices convert inspect bench plot report completion" ;;
    esac
}
complete -o filenames -F _fabric fabric
