"""SIP registrar and push-triggering proxy."""
