"""The prefix cache of one worker: RAM first, then SSD. Prompts are looked up by content, and users are told what was found."""
