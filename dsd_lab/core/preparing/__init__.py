"""Writing data sets in a form that is read at random without decoding; reading them is `core.data.prepared`."""
