"""What is learned: tokenizer, tasks, corpora, metrics of text."""
