"""Examples of every command, shown under its --help and first in its man page: what it does, and the line to type."""

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "prepare": [
        ("question and answer rows become chat records", "fabric prepare raw.jsonl > rows.jsonl"),
        (
            "the same, with a tenth held out",
            "fabric prepare raw.jsonl --holdout held.jsonl=0.1 > rows.jsonl",
        ),
    ],
    "template": [
        ("see what a model will be trained on", "fabric template rows.jsonl -m base.gguf | head -n 1 | jq -r .text"),
        ("token records, for tools of your own", "fabric template rows.jsonl -m base.gguf --tokens > tokens.jsonl"),
    ],
    "train": [
        ("an adapter from rows", "fabric train rows.jsonl -m base.gguf -o adapter.gguf"),
        (
            "whole weights, into eight bits",
            "fabric train rows.jsonl -m base.gguf --full -o - | fabric quantize --type q8_0 -o tuned.gguf",
        ),
        ("on four processes, of one or more hosts", "mpirun -n 4 fabric train rows.jsonl -m base.gguf -o adapter.gguf"),
        ("what would it take?", "fabric train rows.jsonl -m base.gguf --dry-run --json | jq .peak_bytes"),
        (
            "stop when validation no longer improves, and keep the best",
            "fabric train rows.jsonl -m base.gguf -o adapter.gguf --val 0.1 --epochs 20 --patience 3",
        ),
        (
            "watch the loss from another tool",
            "fabric train rows.jsonl -m base.gguf -o a.gguf --metrics - | jq -c '[.step,.loss]'",
        ),
        ("train on another machine", "ssh phone 'fabric train - -m base.gguf -o -' < rows.jsonl > adapter.gguf"),
    ],
    "resume": [
        ("after Ctrl-C, a crash or a power cut: the newest unfinished run", "fabric resume"),
        ("two more epochs of a run that had one", "fabric resume NAME --epochs 3"),
    ],
    "runs": [
        ("list the runs, the newest first", "fabric runs"),
        ("compare the settings and losses of two runs", "fabric runs --compare a b"),
        ("show what would be removed if the newest three stay", "fabric runs --prune --keep 3 --dry-run"),
        ("the best validation loss of all runs", "fabric runs --json | jq '[.runs[].best_val_loss // empty] | min'"),
    ],
    "merge": [
        ("base and adapter into one model", "fabric merge -m base.gguf -a adapter.gguf -o merged.gguf"),
        ("half of one adapter, all of another", "fabric merge -m base.gguf -a a.gguf=0.5 -a b.gguf -o merged.gguf"),
        ("straight into four bits", "fabric merge -m base.gguf -a a.gguf | fabric quantize --type q4_0 -o small.gguf"),
    ],
    "quantize": [
        ("eight bits per weight", "fabric quantize model.gguf --type q8_0 -o small.gguf"),
        ("a mix of four and six bits, the most common type", "fabric quantize model.gguf --type q4_k_m -o q4.gguf"),
        ("calibrated on rows", "fabric quantize model.gguf --type q4_k_m --calibrate rows.jsonl -o q4.gguf"),
        ("some matrices larger", "fabric quantize model.gguf --type q4_0 --tensor 'blk.*.attn_v.*=q8_0' -o q4.gguf"),
    ],
    "eval": [
        ("base against two adapters, row by row", "fabric eval held.jsonl -m base.gguf -a a.gguf -a b.gguf --compare"),
        (
            "perplexity as llama.cpp measures it",
            "fabric prepare book.txt --format text | fabric eval -m base.gguf --llama-perplexity",
        ),
        (
            "compare written answers with those of the rows",
            "fabric eval held.jsonl -m base.gguf -a a.gguf --compare --measures exact,rouge-l,chrf",
        ),
        (
            "a larger model judges base against adapter",
            "fabric eval held.jsonl -m base.gguf -a a.gguf --judge large.gguf",
        ),
        ("a gate in a script", "fabric eval held.jsonl -m base.gguf --json | jq -e '.perplexity < 12'"),
    ],
    "generate": [
        ("one answer", "fabric generate -m base.gguf -a adapter.gguf --prompt 'Which line serves Wrenmoor?'"),
        ("a conversation", "fabric generate -m base.gguf --chat"),
        ("an answer for every row", "fabric generate prompts.jsonl -m base.gguf > answers.jsonl"),
        (
            "three different ones",
            "fabric generate prompts.jsonl -m base.gguf --choices 3 --temperature 0.8 --min-p 0.05 > answers.jsonl",
        ),
    ],
    "devices": [
        ("list the devices", "fabric devices"),
        ("show what a GPU would split into tiles", "fabric devices --plan -m base.gguf --device vulkan"),
        ("measure a GPU and save the best settings", "fabric devices --probe --device vulkan"),
    ],
    "convert": [
        ("a checkpoint, straight into eight bits", "fabric convert Qwen3-0.6B/ | fabric quantize -o qwen3.gguf"),
        ("an adapter that PEFT trained", "fabric convert peft-adapter/ -m base.gguf -o adapter.gguf"),
        ("an adapter for PEFT", "fabric convert adapter.gguf -m base.gguf -o peft-adapter"),
    ],
    "inspect": [
        ("what is this file?", "fabric inspect model.gguf"),
        ("what did training change?", "fabric inspect tuned.gguf base.gguf"),
        ("how was this adapter made?", "fabric inspect adapter.gguf --json | jq .history"),
    ],
    "bench": [("training speed of a model here", "fabric bench -m base.gguf --ctx 512")],
    "plot": [
        ("the loss in the terminal", "fabric plot metrics.jsonl"),
        (
            "the loss of a run that goes on",
            "fabric train rows.jsonl -m base.gguf -o a.gguf --metrics - | fabric plot --follow",
        ),
        ("two runs as a PNG, with the learning rate below", "fabric plot a.jsonl b.jsonl -c loss,lr -o runs.png"),
        ("several columns of a run as an SVG", "fabric plot run.jsonl -c loss,lr,grad_norm,tokens_per_s -o run.svg"),
    ],
    "report": [
        ("a run and its scores", "fabric report NAME --eval scores.json -o report.html"),
        ("two runs beside each other", "fabric report A B -o report.html"),
        ("a run that goes on, in a browser", "fabric report --follow NAME"),
    ],
    "completion": [("for this shell only", "source <(fabric completion bash)")],
}
