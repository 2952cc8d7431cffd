"""One Report value becomes HTML, Markdown, JSON and pictures."""
