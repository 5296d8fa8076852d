"""Which requests are admitted, for how long, and with which grammars?"""
