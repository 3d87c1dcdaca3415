"""Reports: values that any room makes (`values`, `figures`), rendered by `page` and `markdown`."""
