"""fabric: fine-tune GGUF language models on the device they will run on."""

__version__ = "0.1.0"
