"""KV on disk, without MLX: files, their index, one directory per model. Workers own directories, the gateway trims the others."""
