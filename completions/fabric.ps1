# PowerShell completion for fabric; written by tools/pages.py
# fabric completion powershell | Out-String | Invoke-Expression
function _fabric_result($text, $kind, $help) {
    $quoted = if ($text -match "[\s']") { "'" + $text.Replace("'", "''") + "'" } else { $text }
    [System.Management.Automation.CompletionResult]::new($quoted, $text, $kind, $(if ($help) { $help } else { $text }))
}
function _fabric_files($word, $patterns) { # without a pattern all files; one that ends in a slash is of folders
    $found = Get-ChildItem -Path "$word*" -Force -ErrorAction SilentlyContinue
    foreach ($pattern in $patterns | Where-Object { $_ -match '^\..*/$' }) {
        $found = @(Get-ChildItem -Path $pattern -Directory -ErrorAction SilentlyContinue) + @($found)
    }
    $names = $patterns | Where-Object { $_ -notmatch '/$' }
    foreach ($one in $found) {
        $fits = -not $patterns -or $one.PSIsContainer -or ($names | Where-Object { $one.Name -like $_ })
        $path = Resolve-Path -LiteralPath $one.FullName -Relative
        if ($fits) { _fabric_result ($path -replace '^\.[\\/]', '') 'ProviderItem' }
    }
}
function _fabric_values($word, $kind, $values) {
    if ($kind -eq 'files') { return _fabric_files $word $values }
    $before = if ($kind -eq 'list' -and $word -match '^(.*,)') { $Matches[1] } else { '' }
    foreach ($one in $values) {
        if ("$before$one".StartsWith($word)) { _fabric_result "$before$one" 'ParameterValue' }
    }
}
Register-ArgumentCompleter -Native -CommandName fabric -ScriptBlock {
    param($word, $ast, $cursor)
    $commands = [ordered]@{
        'prepare' = 'turn raw rows (JSONL, CSV, plain text) into training records'
        'template' = 'render chat records with a model''s own template'
        'train' = 'fine-tune a GGUF model on records: writes a LoRA adapter or a model'
        'resume' = 'continue a run that was stopped'
        'runs' = 'list, compare and remove training runs'
        'merge' = 'fold adapters into their base model'
        'quantize' = 'write a model in a smaller block format'
        'eval' = 'measure perplexity and accuracy, and compare answers'
        'generate' = 'answer prompts with a model and adapters'
        'devices' = 'list what this machine can train on'
        'convert' = 'Hugging Face checkpoints and PEFT adapters to GGUF, and back'
        'inspect' = 'show what is inside a GGUF file'
        'bench' = 'measure training speed and share of the machine''s peak'
        'plot' = 'draw the metrics of training runs'
        'report' = 'put runs and evaluations on one page'
        'completion' = 'print the completion script of a shell'
        'help' = 'how to use a command'
    }
    $operands = @{
        'prepare' = @('files', @())
        'template' = @('files', @('*.jsonl'))
        'train' = @('files', @('*.jsonl'))
        'resume' = @('files', @('.fabric/runs/*/'))
        'runs' = @('files', @('.fabric/runs/*/', '*.jsonl'))
        'merge' = @('nothing', @())
        'quantize' = @('files', @('*.gguf'))
        'eval' = @('files', @('*.jsonl'))
        'generate' = @('files', @('*.jsonl'))
        'devices' = @('nothing', @())
        'convert' = @('files', @('*/', '*.gguf'))
        'inspect' = @('files', @('*.gguf'))
        'bench' = @('nothing', @())
        'plot' = @('files', @('.fabric/runs/*/', '*.jsonl'))
        'report' = @('files', @('.fabric/runs/*/', '*.jsonl'))
        'completion' = @('words', @('bash', 'zsh', 'fish', 'powershell'))
        'help' = @('words', @('prepare', 'template', 'train', 'resume', 'runs', 'merge', 'quantize', 'eval', 'generate', 'devices', 'convert', 'inspect', 'bench', 'plot', 'report', 'completion'))
    }
    $options = @{
        'prepare' = @(
            , @(@('--format'), @('words', @('auto', 'jsonl', 'json', 'csv', 'tsv', 'text', 'paragraphs')), 'text: one record per file; paragraphs: divided at blank lines')
            , @(@('--separator'), @('nothing', @()), 'cell separator of tables, `tab` for a tab; default: detected')
            , @(@('--as'), @('words', @('chat', 'completion', 'text')), 'kind of record for rows with a prompt and an answer')
            , @(@('--field'), @('nothing', @()), 'rename a field of the rows; may be given again')
            , @(@('--keep-fields'), @('nothing', @()), 'fields to keep; default: all')
            , @(@('--system'), @('nothing', @()), 'system message of rows that have none')
            , @(@('--prompt-template'), @('nothing', @()), 'user message, from {prompt} and other {fields}')
            , @(@('--normalize', '--no-normalize'), $null, 'Unicode NFC, plain spaces and line ends')
            , @(@('--min-chars'), @('nothing', @()), 'shortest record')
            , @(@('--max-chars'), @('nothing', @()), 'longest record')
            , @(@('--dedup', '--no-dedup'), $null, 'keep only the first of equal records')
            , @(@('--balance'), @('nothing', @()), 'keep equally many rows of each value of a field')
            , @(@('--shuffle', '--no-shuffle'), $null, 'shuffle the rows, by --seed')
            , @(@('--seed'), @('nothing', @()), 'the same seed gives the same bits')
            , @(@('--holdout'), @('files', @()), 'hold out a share of the rows in a file; may be given again')
            , @(@('--stratify'), @('nothing', @()), 'hold out the same share of each value of a field')
            , @(@('--on-error'), @('words', @('stop', 'skip')), 'at a row that cannot be read or rendered: stop, or skip the row')
            , @(@('-o', '--output'), @('files', @()), 'output file; `-`: stdout')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'template' = @(
            , @(@('-m', '--model'), @('files', @('*.gguf')), 'base model')
            , @(@('--template'), @('files', @()), 'chat template; default: the adapter''s, the model''s own, or one that its tokens fit')
            , @(@('--tokens', '--no-tokens'), $null, 'write token records instead of text')
            , @(@('--check'), $null, 'write nothing; show lengths and what trains')
            , @(@('--ctx'), @('nothing', @()), 'longest row')
            , @(@('--stride'), @('nothing', @()), 'tokens from one window of a long text to the next; default: windows do not overlap')
            , @(@('--train'), @('words', @('all', 'last')), 'which answers of a conversation count; last: the last one only, and the row ends with it')
            , @(@('--on-error'), @('words', @('stop', 'skip')), 'at a row that cannot be read or rendered: stop, or skip the row')
            , @(@('-o', '--output'), @('files', @()), 'output file; `-`: stdout')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'train' = @(
            , @(@('-m', '--model'), @('files', @('*.gguf')), 'base model')
            , @(@('-o', '--output'), @('files', @()), 'the adapter or model; `-`: stdout; default: in --run-dir')
            , @(@('--full', '--no-full'), $null, 'train all weights and write a model, instead of a LoRA adapter')
            , @(@('--type'), @('words', @('keep', 'f32', 'f16', 'bf16', 'q8_0', 'q6_k', 'q5_k_m', 'q5_k_s', 'q5_k', 'q5_1', 'q5_0', 'q4_k_m', 'q4_k_s', 'q4_k', 'q4_1', 'q4_0')), 'matrix type of the --full output, or keep; default: unchanged, quantized ones become bf16')
            , @(@('--rank'), @('nothing', @()), 'LoRA rank')
            , @(@('--alpha'), @('nothing', @()), 'LoRA scale is alpha / rank')
            , @(@('--rslora', '--no-rslora'), $null, 'LoRA scale is alpha / sqrt(rank)')
            , @(@('--dropout'), @('nothing', @()), 'LoRA dropout: share of the input that is dropped')
            , @(@('--modules'), @('list', @('usual', 'attn', 'conv', 'delta', 'ffn', 'ple', 'attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down', 'attn_qkv', 'output', 'shortconv.in_proj', 'shortconv.out_proj', 'inp_gate', 'proj', 'attn_gate', 'ssm_beta', 'ssm_alpha', 'all', 'ssm_out')), 'attn, ffn, all, or names such as attn_q,ffn_up, joined by commas; usual: all, but of experts attn')
            , @(@('--seed'), @('nothing', @()), 'the same seed gives the same bits')
            , @(@('-a', '--adapter'), @('files', @('*.gguf')), 'start from this adapter: its rank, alpha and modules hold')
            , @(@('--epochs'), @('nothing', @()), 'passes over the rows; default: by their number')
            , @(@('--steps'), @('nothing', @()), 'optimizer steps, instead of --epochs')
            , @(@('--lr'), @('nothing', @()), 'peak learning rate; default: by model size, lower with --full')
            , @(@('--schedule'), @('words', @('constant', 'linear', 'cosine', 'exponential')), 'learning rate schedule')
            , @(@('--warmup-ratio'), @('nothing', @()), 'warmup, as a share of the steps')
            , @(@('--warmup-steps'), @('nothing', @()), 'instead of --warmup-ratio')
            , @(@('--lr-min'), @('nothing', @()), 'learning rate at the end of the schedule; exponential: 0 means lr / 100')
            , @(@('--lora-plus'), @('nothing', @()), 'LoRA+: learning rate of B over that of A')
            , @(@('--neftune'), @('nothing', @()), 'noise on embeddings, such as 5; 0: none')
            , @(@('--weight-decay'), @('nothing', @()), 'decoupled weight decay, not of norms and biases')
            , @(@('--clip'), @('nothing', @()), 'largest gradient norm; 0: any')
            , @(@('--optimizer'), @('words', @('adamw', 'sgd')), 'optimizer')
            , @(@('--batch'), @('nothing', @()), 'rows per optimizer step; default: by the number of rows')
            , @(@('--ctx'), @('nothing', @()), 'longest row; default: as the rows need, from 512 to 2048')
            , @(@('--stride'), @('nothing', @()), 'tokens from one window of a long text to the next; default: windows do not overlap')
            , @(@('--accumulate'), @('nothing', @()), 'micro-batches per step, at least; same result')
            , @(@('--sync-every'), @('nothing', @()), 'with several ranks: average their parameters every N steps, not gradients each step')
            , @(@('--rank-shares'), @('nothing', @()), 'with several ranks: share of the rows of each, such as 100,40; default: by speed where devices differ')
            , @(@('--pack', '--no-pack'), $null, 'pack several rows into one sequence; they do not see each other')
            , @(@('--shuffle', '--no-shuffle'), $null, 'shuffle the rows in each epoch')
            , @(@('--template'), @('files', @()), 'chat template; default: the adapter''s, the model''s own, or one that its tokens fit')
            , @(@('--train'), @('words', @('all', 'last')), 'which answers of a conversation count; last: the last one only, and the row ends with it')
            , @(@('--on-error'), @('words', @('stop', 'skip')), 'at a row that cannot be read or rendered: stop, or skip the row')
            , @(@('--precision'), @('words', @('auto', 'f32', 'bf16')), 'precision of activations; auto: the profile''s, or bf16 where the device gains from it')
            , @(@('--weights'), @('words', @('auto', 'blocks', '16bit')), 'frozen weights: as in the file, or decoded once; auto: the profile''s, or 16bit where it is faster and fits')
            , @(@('--checkpointing', '--no-checkpointing'), $null, 'recompute activations: less memory, same bits; default: the profile''s, or where large')
            , @(@('--threads'), @('nothing', @()), 'CPU threads; 0: one per core')
            , @(@('--device'), @('words', @('auto', 'cpu', 'cuda', 'metal', 'sycl', 'vulkan')), 'a name from `fabric devices`, or auto: the first accelerator that fits')
            , @(@('--val'), @('files', @('*.jsonl')), 'validation rows, or a share of the training rows')
            , @(@('--eval-every'), @('nothing', @()), 'validate every N steps; 0: after each epoch')
            , @(@('--sample'), @('files', @('*.jsonl')), 'rows whose prompts are answered while training: the first 4')
            , @(@('--sample-every'), @('nothing', @()), 'answer --sample every N steps; 0: after each epoch')
            , @(@('--patience'), @('nothing', @()), 'stop after N validations without a better one, and write the best; 0: never')
            , @(@('--checkpoint-every'), @('nothing', @()), 'checkpoint every N steps; 0: after each epoch')
            , @(@('--checkpoint-minutes'), @('nothing', @()), 'also checkpoint every X minutes; 0: by steps only')
            , @(@('--keep'), @('nothing', @()), 'number of newest checkpoints to keep')
            , @(@('--run-dir'), @('files', @('*/')), 'run directory; default: a new folder in .fabric/runs')
            , @(@('--name'), @('nothing', @()), 'name of the run, and of its folder in .fabric/runs')
            , @(@('--metrics'), @('files', @()), 'metrics as JSONL, one object per step; `-`: stdout')
            , @(@('--track'), @('list', @('tensorboard', 'wandb', 'mlflow')), 'metrics also to tensorboard, wandb, mlflow, joined by commas; each needs its package')
            , @(@('--config'), @('files', @('*.toml')), 'flags of `train`, by their long names; see fabric.toml(5)')
            , @(@('--dry-run'), $null, 'print plan, memory and time; write no files')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'resume' = @(
            , @(@('-o', '--output'), @('files', @()), 'the adapter or model; default: as the run began')
            , @(@('--metrics'), @('files', @()), 'metrics as JSONL, one object per step; `-`: stdout; default: as the run began')
            , @(@('--track'), @('words', @('tensorboard', 'wandb', 'mlflow')), 'metrics also to tensorboard, wandb, mlflow, joined by commas; each needs its package; default: as the run began')
            , @(@('--threads'), @('nothing', @()), 'CPU threads; 0: one per core')
            , @(@('--epochs'), @('nothing', @()), 'go on to X passes over the rows in all')
            , @(@('--steps'), @('nothing', @()), 'go on to N steps in all')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'runs' = @(
            , @(@('--compare'), $null, 'compare settings and losses of runs; default: the newest two')
            , @(@('--prune'), $null, 'remove runs that are named, or all but --keep')
            , @(@('--keep'), @('nothing', @()), 'with --prune: number of newest runs to keep')
            , @(@('--dry-run'), $null, 'with --prune: print what would be removed')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'merge' = @(
            , @(@('-m', '--model'), @('files', @('*.gguf')), 'base model; none with --average')
            , @(@('-a', '--adapter'), @('files', @('*.gguf')), 'LoRA adapter; may be given again')
            , @(@('-o', '--output'), @('files', @()), 'output file; `-`: stdout')
            , @(@('--type'), @('words', @('keep', 'f32', 'f16', 'bf16', 'q8_0', 'q6_k', 'q5_k_m', 'q5_k_s', 'q5_k', 'q5_1', 'q5_0', 'q4_k_m', 'q4_k_s', 'q4_k', 'q4_1', 'q4_0')), 'bf16, f16, ..., q4_k_m, or keep: each tensor''s own')
            , @(@('--threads'), @('nothing', @()), 'CPU threads; 0: one per core')
            , @(@('--average', '--no-average'), $null, 'write the weighted mean of several adapters, with =SCALE as weights, instead of a model')
            , @(@('--errors', '--no-errors'), $null, 'report the error of each tensor')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'quantize' = @(
            , @(@('-o', '--output'), @('files', @()), 'output file; `-`: stdout')
            , @(@('--type'), @('words', @('f32', 'f16', 'bf16', 'q8_0', 'q6_k', 'q5_k_m', 'q5_k_s', 'q5_k', 'q5_1', 'q5_0', 'q4_k_m', 'q4_k_s', 'q4_k', 'q4_1', 'q4_0')), 'f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_k q5_1 q5_0 q4_k_m q4_k_s q4_k q4_1 q4_0')
            , @(@('--output-type'), @('words', @('f32', 'f16', 'bf16', 'q8_0', 'q6_k', 'q5_k', 'q5_1', 'q5_0', 'q4_k', 'q4_1', 'q4_0')), 'type of the output head; default: by llama.cpp''s rule')
            , @(@('--threads'), @('nothing', @()), 'CPU threads; 0: one per core')
            , @(@('--tensor'), @('pair', @('f32', 'f16', 'bf16', 'q8_0', 'q6_k', 'q5_k', 'q5_1', 'q5_0', 'q4_k', 'q4_1', 'q4_0')), 'for matrices matching GLOB; may be given again, the last match wins')
            , @(@('--calibrate'), @('files', @('*.jsonl')), 'records for calibration: columns that they use get smaller errors')
            , @(@('--imatrix'), @('files', @('*.gguf')), 'calibrate with an importance matrix of llama.cpp')
            , @(@('--save-imatrix'), @('files', @()), 'write the importance matrix that --calibrate computed')
            , @(@('--errors', '--no-errors'), $null, 'report the error of each tensor')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'eval' = @(
            , @(@('-m', '--model'), @('files', @('*.gguf')), 'base model')
            , @(@('-a', '--adapter'), @('files', @('*.gguf')), 'LoRA adapter; may be given again')
            , @(@('--compare', '--no-compare'), $null, 'compare each adapter with the base, row by row')
            , @(@('--accuracy'), @('words', @('likelihood', 'generated')), 'accuracy of the likeliest label, or of the label that the model writes')
            , @(@('--llama-perplexity', '--no-llama-perplexity'), $null, 'perplexity as llama.cpp measures it: texts in windows of --ctx, first half not scored')
            , @(@('--labels'), @('nothing', @()), 'labels to choose from; default: those of the rows')
            , @(@('--measures'), @('list', @('exact', 'rouge-l', 'chrf')), 'compare written answers with those of the rows: exact, rouge-l, chrf')
            , @(@('--max-tokens'), @('nothing', @()), 'longest answer')
            , @(@('--judge'), @('files', @('*.gguf')), 'model that judges pairs of answers: the base''s and those with -a')
            , @(@('--against'), @('files', @('*.gguf')), 'with --judge: compare with the answers of this model, not the base')
            , @(@('--answers'), @('nothing', @()), 'with --judge: compare with a field of the rows, or two fields; reference: the row''s own answer')
            , @(@('--judge-prompt'), @('files', @()), 'with --judge: Jinja template of the question')
            , @(@('--ctx'), @('nothing', @()), 'longest row')
            , @(@('--stride'), @('nothing', @()), 'tokens from one window of a long text to the next; default: windows do not overlap')
            , @(@('--template'), @('files', @()), 'chat template; default: the adapter''s, the model''s own, or one that its tokens fit')
            , @(@('--train'), @('words', @('all', 'last')), 'which answers of a conversation count; last: the last one only, and the row ends with it')
            , @(@('--precision'), @('words', @('auto', 'f32', 'bf16')), 'precision of activations; auto: the profile''s, or bf16 where the device gains from it')
            , @(@('--threads'), @('nothing', @()), 'CPU threads; 0: one per core')
            , @(@('--device'), @('words', @('auto', 'cpu', 'cuda', 'metal', 'sycl', 'vulkan')), 'a name from `fabric devices`, or auto: the first accelerator that fits')
            , @(@('--rows'), @('files', @()), 'write loss, label, answer and verdict of each row and model as JSONL')
            , @(@('--markdown', '--no-markdown'), $null, 'print tables as Markdown')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'generate' = @(
            , @(@('-m', '--model'), @('files', @('*.gguf')), 'base model')
            , @(@('--prompt'), @('nothing', @()), 'one prompt; the answer comes as text')
            , @(@('--raw', '--no-raw'), $null, 'continue --prompt as plain text, not as a user''s turn')
            , @(@('--system'), @('nothing', @()), 'system message before --prompt or --chat')
            , @(@('-a', '--adapter'), @('files', @('*.gguf')), 'LoRA adapter; may be given again')
            , @(@('--max-tokens'), @('nothing', @()), 'longest answer')
            , @(@('--temperature'), @('nothing', @()), 'sampling temperature; 0: always the likeliest token')
            , @(@('--top-k'), @('nothing', @()), 'sample among the N likeliest tokens; 0: all')
            , @(@('--top-p'), @('nothing', @()), 'sample among the likeliest tokens that together have this probability')
            , @(@('--min-p'), @('nothing', @()), 'drop tokens below X times the top probability')
            , @(@('--repeat-penalty'), @('nothing', @()), 'make recent tokens less likely; 1: off')
            , @(@('--repeat-window'), @('nothing', @()), 'number of tokens that --repeat-penalty looks back')
            , @(@('--choices'), @('nothing', @()), 'number of sampled answers per prompt')
            , @(@('--seed'), @('nothing', @()), 'the same seed gives the same bits')
            , @(@('--stop'), @('nothing', @()), 'an answer ends before this text; may be given again')
            , @(@('--ctx'), @('nothing', @()), 'longest row')
            , @(@('--batch'), @('nothing', @()), 'rows that are decoded together')
            , @(@('--template'), @('files', @()), 'chat template; default: the adapter''s, the model''s own, or one that its tokens fit')
            , @(@('--precision'), @('words', @('auto', 'f32', 'bf16')), 'precision of activations; auto: the profile''s, or bf16 where the device gains from it')
            , @(@('--threads'), @('nothing', @()), 'CPU threads; 0: one per core')
            , @(@('--device'), @('words', @('auto', 'cpu', 'cuda', 'metal', 'sycl', 'vulkan')), 'a name from `fabric devices`, or auto: the first accelerator that fits')
            , @(@('-o', '--output'), @('files', @()), 'output file; `-`: stdout')
            , @(@('--chat'), $null, 'chat: one message per line, from the terminal or stdin; Ctrl-C stops an answer')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'devices' = @(
            , @(@('--plan'), $null, 'show which operands training -m on --device would split into tiles, and why')
            , @(@('--probe'), $null, 'measure --device and write the best settings as a profile')
            , @(@('-o', '--output'), @('files', @()), 'profile that --probe writes; default: in your profiles')
            , @(@('-m', '--model'), @('files', @('*.gguf')), 'base model, for --plan')
            , @(@('--full', '--no-full'), $null, 'with --plan: for --full training, not LoRA')
            , @(@('--ctx'), @('nothing', @()), 'longest row')
            , @(@('--precision'), @('words', @('auto', 'f32', 'bf16')), 'precision of activations; auto: the profile''s, or bf16 where the device gains from it')
            , @(@('--weights'), @('words', @('auto', 'blocks', '16bit')), 'frozen weights: as in the file, or decoded once; auto: the profile''s, or 16bit where it is faster and fits')
            , @(@('--device'), @('words', @('auto', 'cpu', 'cuda', 'metal', 'sycl', 'vulkan')), 'a name from `fabric devices`, or auto: the first accelerator that fits')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'convert' = @(
            , @(@('-o', '--output'), @('files', @()), 'output file; `-`: stdout; to PEFT: a new folder')
            , @(@('-m', '--model'), @('files', @('*.gguf')), 'base model; adapters need it')
            , @(@('--type'), @('words', @('keep', 'f32', 'f16', 'bf16')), 'matrix type of a model: keep, f32, f16, bf16')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'inspect' = @(
            , @(@('--tensors', '--no-tensors'), $null, 'list every tensor')
            , @(@('--chat-template'), $null, 'print the chat template that commands use with this file')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'bench' = @(
            , @(@('-m', '--model'), @('files', @('*.gguf')), 'base model')
            , @(@('--ctx'), @('nothing', @()), 'longest row')
            , @(@('--batch'), @('nothing', @()), 'rows per step')
            , @(@('--rows-at-once'), @('nothing', @()), 'rows per micro-batch; 0: all')
            , @(@('--trained-every'), @('nothing', @()), 'every Nth token trains')
            , @(@('--rank'), @('nothing', @()), 'LoRA rank')
            , @(@('--modules'), @('list', @('usual', 'attn', 'conv', 'delta', 'ffn', 'ple', 'attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down', 'attn_qkv', 'output', 'shortconv.in_proj', 'shortconv.out_proj', 'inp_gate', 'proj', 'attn_gate', 'ssm_beta', 'ssm_alpha', 'all', 'ssm_out')), 'attn, ffn, all, or names such as attn_q,ffn_up, joined by commas; usual: all, but of experts attn')
            , @(@('--precision'), @('words', @('auto', 'f32', 'bf16')), 'precision of activations; auto: the profile''s, or bf16 where the device gains from it')
            , @(@('--weights'), @('words', @('auto', 'blocks', '16bit')), 'frozen weights: as in the file, or decoded once; auto: the profile''s, or 16bit where it is faster and fits')
            , @(@('--checkpointing', '--no-checkpointing'), $null, 'recompute activations: less memory, same bits; default: the profile''s, or where large')
            , @(@('--steps'), @('nothing', @()), 'timed steps; the median counts')
            , @(@('--threads'), @('nothing', @()), 'CPU threads; 0: one per core')
            , @(@('--device'), @('words', @('auto', 'cpu', 'cuda', 'metal', 'sycl', 'vulkan')), 'a name from `fabric devices`, or auto: the first accelerator that fits')
            , @(@('--isa'), @('words', @('generic', 'avx2', 'avx512', 'avx512_bf16', 'neon', 'neon_bf16')), 'CPU: generic, avx2, avx512, avx512_bf16, neon or neon_bf16')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'plot' = @(
            , @(@('-o', '--output'), @('files', @()), 'a picture; `-`: stdout')
            , @(@('--svg', '--no-svg'), $null, 'an SVG, not a PNG; also where FILE ends in .svg')
            , @(@('-c', '--columns'), @('list', @('loss', 'val_loss', 'lr', 'grad_norm', 'tokens_per_s')), 'columns, one panel each, such as loss,lr,grad_norm,tokens_per_s')
            , @(@('--follow'), $null, 'draw again as runs go on, until Ctrl-C or stdin ends')
            , @(@('--smooth'), @('nothing', @()), 'width of smoothing; 0: none; default: a fortieth of the run')
            , @(@('--title'), @('nothing', @()), 'title of the picture')
            , @(@('--width'), @('nothing', @()), 'pixels of a picture, columns of text')
            , @(@('--height'), @('nothing', @()), 'pixels of a picture, lines of text')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'report' = @(
            , @(@('--eval'), @('files', @()), 'what `eval --json` wrote; may be repeated')
            , @(@('-o', '--output'), @('files', @()), 'the page; `-`: stdout')
            , @(@('--title'), @('nothing', @()), 'title of the page; default: the names of the runs')
            , @(@('--follow'), $null, 'serve the page on 127.0.0.1 until the runs are over or Ctrl-C')
            , @(@('--port'), @('nothing', @()), 'port of --follow; 0: any free one')
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
        'completion' = @(
            , @(@('-q', '--quiet'), $null, 'errors only')
            , @(@('--json'), $null, 'report as one JSON object')
            , @(@('--strict'), $null, 'refuse input that would be ignored in part')
            , @(@('--debug'), $null, 'show a traceback on errors')
            , @(@('-h', '--help'), $null, 'show how to use it')
        )
    }
    $typed = $ast.CommandElements | Where-Object { $_.Extent.EndOffset -lt $cursor }
    $before = @($typed | ForEach-Object { "$_" })
    if ($before.Count -lt 2) {
        foreach ($name in $commands.Keys) {
            if ($name.StartsWith($word)) { _fabric_result $name 'Command' $commands[$name] }
        }
        return
    }
    $command, $last = $before[1], $before[-1]
    if (-not $operands.ContainsKey($command)) { return }
    foreach ($option in $options[$command]) {
        if ($option[1] -and $option[0] -ccontains $last) {
            return _fabric_values $word $option[1][0] $option[1][1]
        }
    }
    if ($word -notlike '-*') { return _fabric_values $word $operands[$command][0] $operands[$command][1] }
    foreach ($option in $options[$command]) {
        foreach ($flag in $option[0]) {
            if ($flag.StartsWith($word)) { _fabric_result $flag 'ParameterName' $option[2] }
        }
    }
}
