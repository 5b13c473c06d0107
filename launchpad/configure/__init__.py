"""Configure: the declaration as the files and flags that tensorflow_model_server reads, linted before it does."""
