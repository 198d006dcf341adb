"""What both services do the same over HTTP.

edge        the middleware: request id, log line, access, body bound; gives an app its error handlers
access      who may call: Host allow-list and API key
errors      what an error looks like, by dialect
disconnect  a client that leaves before its answer
docs        the page at /docs
server      listen, serve, end
"""
