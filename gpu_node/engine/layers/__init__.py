"""Own layers for models that are shaped like Llama: quicker than the modules they stand for, with the same numbers."""
