"""`duet-tiny-chat`: data and training of the embedded review, summary and chat model."""
