"""Where large payloads are kept while their messages travel: stores, the check-in, the sweep."""
