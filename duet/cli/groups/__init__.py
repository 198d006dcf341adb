"""The verbs of the command, a file a group: what each takes, and its help. A verb imports what it needs when it runs, so that
`duet --help` stays fast."""
