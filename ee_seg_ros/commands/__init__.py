"""The sub-commands of `ee_seg`. Each imports what it needs when it runs, so that --help is quick."""
