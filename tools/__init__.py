"""The command line of mldb and the tools of its developers."""
