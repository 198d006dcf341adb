"""OpenAI's completions: a raw prompt is continued, without a chat template."""
