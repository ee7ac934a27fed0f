"""What the settings take, refuse and show."""

import os
from pathlib import Path

import pytest

from mcp_server.settings import SettingsError, load_settings


def test_a_dotenv_file_adds_what_the_environment_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("DEFAULT_USER_ID=ada\nMEMORY_BUDGET=7\nAWS_PROFILE=work\n")
    monkeypatch.chdir(tmp_path)
    # Set first, so that what the file adds is taken back after the test.
    for name in ("DEFAULT_USER_ID", "AWS_PROFILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MEMORY_BUDGET", "8")

    settings = load_settings()

    assert settings.default_user_id == "ada"
    assert settings.memory_budget == 8
    assert os.environ["AWS_PROFILE"] == "work"


def test_secrets_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAVILY_API_KEY", "tvly-hunter2")
    monkeypatch.setenv("AUTH_TOKENS", f"ada:{'a' * 64}, bob:{'b' * 64}")

    shown = load_settings().redacted()

    assert shown["TAVILY_API_KEY"] == "***"
    assert shown["AUTH_TOKENS"] == ["***", "***"]
    assert "hunter2" not in repr(load_settings())


def test_addresses_and_accounts_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAVILY_BASE_URL", "https://user:hunter2@proxy.example.com/tavily")
    monkeypatch.setenv(
        "LLM_MODEL_ID", "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0"
    )

    shown = load_settings().redacted()

    assert shown["TAVILY_BASE_URL"] == "https://proxy.example.com/tavily"
    assert shown["LLM_MODEL_ID"] == "us.amazon.nova-lite-v1:0"


def test_a_dotenv_file_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_bytes(b"DEFAULT_USER_ID=caf\xe9\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SettingsError, match=r"\.env"):
        load_settings()


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "")
    monkeypatch.setenv("TAVILY_API_KEY", "")

    settings = load_settings()

    assert not settings.temporal_is_remote
    assert settings.tavily_api_key is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CACHE_THRESHOLD", "1.5"),
        ("MEMORY_BUDGET", "0"),
        ("TAVILY_BASE_URL", "http://[bad"),
        ("TAVILY_BASE_URL", "example.com"),
        ("DURABLE_CONTEXT_HOME", "~nobody-of-that-name/x"),
        ("CALL_TIMEOUT_SECONDS", "inf"),
        ("CALL_TIMEOUT_SECONDS", "nan"),
        ("EMBEDDING_DIMENSIONS", "many"),
        ("FETCH_ALLOWED_NETWORKS", "intranet"),
    ],
)
def test_a_bad_value_is_named_and_not_repeated(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=name) as raised:
        load_settings()
    assert f"'{value}'" not in str(raised.value)
    assert "lax-or-strict" not in str(raised.value)
