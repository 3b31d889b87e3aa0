"""The front end of the stand-in."""


class ParserFrontend:
    pass
