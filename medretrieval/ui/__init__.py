"""The page, and what it shows.

Only `components`, `wiring`, `endpoints` and `page` import gradio; the rest works without a server.
"""
