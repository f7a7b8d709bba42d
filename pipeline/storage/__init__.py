"""Folders on a local disk or an object store, and the sources that workers may read."""
