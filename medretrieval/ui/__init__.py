"""What the page shows, without the page: pictures, captions, exports, sessions.

Nothing here imports gradio. `app.py` connects these functions to the components.
"""
