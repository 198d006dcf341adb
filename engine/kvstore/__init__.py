"""KV on disk: files, their index, one directory a model. Knows no MLX: workers own directories, the gateway sweeps the rest."""
