"""The commands: each module has one, named ``command``; ``main.COMMAND_LINES`` lists them."""
