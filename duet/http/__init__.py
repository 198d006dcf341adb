"""What both services do the same over HTTP.

edge        the middleware: request id, log line, access, body bound; gives an app its error handlers
access      who may call: Host allow-list and API key
cors        which web pages may call
forms       routes that take forms with uploads
parts       the parts of a form, and what is wrong with them
spool       the folder of uploads
json_bodies routes that take JSON
encodings   compressed bodies
errors      what an error looks like, by dialect
disconnect  a client that leaves before its answer
docs        the page at /docs, and what / says
server      listen, serve, end
protocol    what one connection may take
"""
