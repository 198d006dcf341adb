"""The prefix cache of one worker: RAM before SSD, planned by content, explained to the user."""
