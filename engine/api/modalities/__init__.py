"""Routes that send one request and get one result."""
