"""File formats of tables. To add one, write a module with its reader and list it in `registry.FORMATS`."""
