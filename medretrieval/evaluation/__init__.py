"""Protocols that measure the product on annotated data: `medretrieval evaluate PROTOCOL`."""
