import pytest
from chatbot.cache import connect
from support import make_settings
from valkey.exceptions import AuthenticationError
from valkey_server import PASSWORD, valkey_server


def test_none_where_none_is_configured() -> None:
    assert connect(make_settings()) is None


def test_the_password_is_sent_over_the_socket() -> None:
    with valkey_server() as url:
        for password, works in ((PASSWORD, True), ("wrong", False)):
            client = connect(make_settings(valkey_url=url, valkey_password=password))
            assert client is not None
            if works:
                assert client.ping()
            else:
                with pytest.raises(AuthenticationError):
                    client.ping()
            client.connection_pool.disconnect()


def test_tcp_has_a_time_limit_too() -> None:
    client = connect(make_settings(valkey_url="valkey://127.0.0.1:9/0"))
    assert client is not None
    assert client.connection_pool.connection_kwargs["socket_connect_timeout"] == 2.0
