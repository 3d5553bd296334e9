"""Text of others on its way out: no control characters in a terminal, no formulas in a table, no passwords anywhere.

Markdown and HTML are escaped by `analysis.pages.markdown.safe` (standard library only).
"""

import re

# The last @ ends the password, which may contain others.
_PASSWORD = re.compile(r"(\w://[^\s:/@?#]*):\S*@")
_TOKEN = re.compile(r"(\bhttps?://)[^\s:/@?#]+@")  # a token stands where the user's name does
_QUERY = re.compile(r"([?&][\w-]*(?:password|passwd|secret|token)=)[^\s&#'\"]+", re.IGNORECASE)
# All but tabs and line breaks; characters that write backwards hide what they stand beside.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
HIDDEN = "***"


def hide_password(text: str) -> str:
    """A text whose addresses have `***` for passwords and tokens.

    Example:
        >>> hide_password("postgresql://me:se@cret@db/mlflow is away"), hide_password("http://head:5000")
        ('postgresql://me:***@db/mlflow is away', 'http://head:5000')
        >>> hide_password("https://t0ken@head"), hide_password("mysql://db/mlflow?user=me&password=secret")
        ('https://***@head', 'mysql://db/mlflow?user=me&password=***')
    """
    for pattern, shown in ((_PASSWORD, rf"\1:{HIDDEN}@"), (_TOKEN, rf"\1{HIDDEN}@"), (_QUERY, rf"\1{HIDDEN}")):
        text = pattern.sub(shown, text)
    return text


def without_user(address: str) -> str:
    """An address of a page without user and password, as it may stand in files that are passed on.

    Example:
        >>> without_user("http://me:secret@head:5000")
        'http://head:5000'
    """
    return re.sub(r"(?<=://)\S*@", "", hide_password(address))


def plain(text: str) -> str:
    """A text as it may go to a terminal or a log: without control characters and passwords.

    Example:
        >>> plain("night\\x1b[2J")
        'night[2J'
    """
    return hide_password(_CONTROL.sub("", text))


def csv_cell(text: str) -> str:
    """A text that no program for tables takes for a formula; numbers stay as they are.

    Example:
        >>> csv_cell("=HYPERLINK(A1)"), csv_cell("-0.5"), csv_cell("resnet8")
        ("'=HYPERLINK(A1)", '-0.5', 'resnet8')
    """
    if not _FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
