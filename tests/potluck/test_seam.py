import httpx
import pytest

from potluck import AnswerTimeout, GatewayUnreachable, Misuse, PotluckError, UnexpectedAnswer
from potluck.seam import translated

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (httpx.ConnectError("refused"), GatewayUnreachable),
        (httpx.ConnectTimeout("slow"), GatewayUnreachable),
        (httpx.ReadTimeout("silent"), AnswerTimeout),
        (httpx.ReadError(""), GatewayUnreachable),
        (httpx.RemoteProtocolError("cut"), GatewayUnreachable),
        (httpx.UnsupportedProtocol("gopher"), Misuse),
        (UnicodeError("label too long"), Misuse),
        (httpx.DecodingError("not gzip"), UnexpectedAnswer),
        (httpx.TooManyRedirects("round"), UnexpectedAnswer),
        (httpx.StreamClosed(), UnexpectedAnswer),
    ],
)
def test_every_kind_of_foreign_error_becomes_ours(foreign, ours):
    with pytest.raises(PotluckError) as caught, translated(URL):
        raise foreign
    assert type(caught.value) is ours
    assert caught.value.__cause__ is foreign
    assert URL in str(caught.value)
    assert "()" not in str(caught.value)


def test_other_errors_pass():
    with pytest.raises(KeyError), translated(URL):
        raise KeyError("ours to mend")


def test_an_unreachable_gateway_is_named():
    with pytest.raises(GatewayUnreachable) as caught, translated(URL):
        raise httpx.ConnectError("refused")
    assert caught.value.url == URL
