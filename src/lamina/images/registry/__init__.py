"""Registries: which hosts serve a name, how to log in, and fetching from them.

Import from the modules: `client` (`Registry`), `hosts` (`HostsConfig`), `credentials`
(`Credential`, `CredentialStore`), `proxies`, `retry`, `cancel`. Only `client` and what it is made
of import urllib3.
"""
