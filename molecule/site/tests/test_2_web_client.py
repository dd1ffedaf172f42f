"""The page in a real browser: through TLS, nginx and the container, with the model's own answers."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import STORY, make_account
from playwright.sync_api import expect
from testbed.browser import chromium, person

# The page is the same on both. Debian 12 has the runbooks meanwhile.
pytestmark = pytest.mark.only_on("debian13")

# A busy machine takes its time (milliseconds).
expect.set_options(timeout=30_000)

PASSWORD = "a-lighthouse-keeper-of-1877"
FETCH = """async ([method, path, body, token]) => {
    const headers = {"Content-Type": "application/json", "X-CSRFToken": token}
    const response = await fetch(path, {method, headers, body: body && JSON.stringify(body)})
    return [response.status, await response.json()]
}"""
# What no model knows, in a PDF written by hand; so often that it shows in the count of tokens.
FACTS = " ".join(["The keeper of the lighthouse is called Ottilie Brandt."] * 20)
# The local model's longest answer, on two processors that others use as well.
ANSWER_MS = 120_000


def pdf(text):
    """The smallest PDF that says one line."""
    stream = f"BT /F1 24 Tf 40 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 800 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (
        table,
        len(out),
    )


@pytest.fixture(scope="module")
def site(host):
    """Inventory variables of the host under test."""
    return host.ansible.get_variables()


@pytest.fixture(scope="module")
def account(host):
    """The e-mail address of an account of these tests' own, made as the README says."""
    return make_account(host, PASSWORD)


@pytest.fixture(scope="module")
def browser(site, authority, tmp_path_factory):
    home = tmp_path_factory.mktemp("chromium")
    with chromium(home, authority, site["chatbot_domain"], site["ansible_host"]) as running:
        yield running


class Page:
    """What a person does on the page."""

    def __init__(self, page, email):
        self.page, self.email = page, email
        self.trouble = []
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("console", self._listen)

    def _listen(self, message):
        # The browser itself notes every answer of 4xx; what the page makes of it is tested.
        if message.type == "error" and "status of 4" not in message.text:
            self.trouble.append(message.text)

    def sign_in(self, password=PASSWORD):
        self.page.goto("/")
        self.page.get_by_label("E-mail").fill(self.email)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()

    def ask(self, question):
        field = self.page.get_by_role("textbox", name="Your message")
        field.fill(question)
        # Not before the conversation is there.
        expect(self.page.get_by_role("button", name="Send", exact=True)).to_be_enabled()
        field.press("Enter")

    @property
    def answers(self):
        return self.page.get_by_role("article", name="Answer")

    @property
    def text(self):
        return self.answers.last.locator(".prose")

    def starts(self):
        """Wait for the first words of an answer that is being written."""
        expect(self.answers.last).to_have_attribute("aria-busy", "true", timeout=ANSWER_MS)
        expect(self.text).to_have_text(re.compile(r"\S+"), timeout=ANSWER_MS)

    def ends(self):
        expect(self.answers.last).to_have_attribute("aria-busy", "false", timeout=ANSWER_MS)

    def stop(self):
        self.page.get_by_role("button", name="Stop the answer").click()

    def conversation(self):
        """The conversation as the site keeps it, asked with the page's own cookie."""
        identifier = self.page.url.rpartition("/")[2]
        status, conversation = self.call("GET", f"/api/v1/conversations/{identifier}")
        assert status == 200, conversation
        return conversation

    def call(self, method, path, body=None, token=""):
        """Send a request as the page's own script would; return (status, JSON)."""
        return self.page.evaluate(FETCH, [method, path, body, token])


def words(text):
    """The letters and digits of a text: Markdown's signs are drawn, not shown."""
    return "".join(re.findall(r"\w", text))


@pytest.fixture
def someone(browser, site, account):
    """A way to more browsers of the same account; each is checked for errors in its console at the end."""
    pages, contexts = [], []

    def another(**look):
        contexts.append(person(browser, site["chatbot_domain"], **look))
        pages.append(Page(contexts[-1].new_page(), account))
        return pages[-1]

    yield another
    trouble = [line for page in pages for line in page.trouble]
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture
def me(someone):
    """Somebody who has signed in."""
    page = someone(permissions=["clipboard-read", "clipboard-write"])
    page.sign_in()
    expect(page.page.get_by_role("heading", name="What would you like to talk about?")).to_be_visible()
    return page


def test_nobody_gets_in_with_a_wrong_password(someone):
    page = someone()
    page.sign_in("not-the-password-at-all")
    expect(page.page.get_by_role("alert")).to_be_visible()
    expect(page.page.get_by_role("textbox", name="Your message")).to_have_count(0)


def test_answer_grows_before_the_eyes_and_is_shown_in_full(me):
    me.ask(STORY)
    me.starts()
    early = len(words(me.text.inner_text()))
    me.ends()
    shown = words(me.text.inner_text())
    kept = me.conversation()["messages"][-1]
    assert 0 < early < len(shown)
    assert shown == words(kept["content"])
    me.answers.last.get_by_role("button", name="Copy answer").click()
    assert me.page.evaluate("navigator.clipboard.readText()") == kept["content"]


def test_stopped_edited_and_asked_again(me):
    """Stop an answer, ask for another one, ask another question instead, and go back to the first."""
    me.ask(STORY)
    me.starts()
    me.stop()
    me.ends()
    expect(me.answers.last).to_contain_text("Stopped.")
    assert me.conversation()["messages"][-1]["status"] == "stopped"

    me.answers.last.get_by_role("button", name="Answer again").click()
    me.starts()
    me.stop()
    me.ends()
    expect(me.answers.last.get_by_role("group", name="Versions")).to_contain_text("2/2")

    me.page.get_by_role("button", name="Edit message").click()
    me.page.get_by_role("textbox", name="Edit message").fill("Say hello.")
    me.page.get_by_role("button", name="Ask again").click()
    question = me.page.get_by_role("article", name="Your message")
    expect(question).to_contain_text("Say hello.")
    me.starts()
    me.ends()
    expect(question.get_by_role("group", name="Versions")).to_contain_text("2/2")
    question.get_by_role("button", name="Previous version").click()
    expect(question).to_contain_text("lighthouse keeper")
    assert len(me.conversation()["messages"]) == 5


def test_pdf_is_read_and_asked_about(me):
    with me.page.expect_file_chooser() as chooser:
        me.page.get_by_role("button", name="Attach files").click()
    chooser.value.set_files({"name": "keeper.pdf", "mimeType": "application/pdf", "buffer": pdf(FACTS)})
    expect(me.page.get_by_role("list", name="Files for this message")).to_contain_text("keeper.pdf")
    expect(me.page.get_by_role("progressbar")).to_have_count(0)
    me.ask("What is the keeper of the lighthouse called?")
    expect(me.page.get_by_role("list", name="Attached files")).to_contain_text("1 page")
    me.starts()
    me.ends()
    # The smallest of models may well misunderstand it; that it has read the page its count of tokens shows:
    # the question has nine words, the page 180.
    question, answer = me.conversation()["messages"]
    assert question["attachments"][0]["characters"] >= len(FACTS)
    assert answer["usage"]["prompt_tokens"] > 180


def test_reload_in_the_middle_of_an_answer(me):
    me.ask(STORY)
    me.starts()
    me.page.reload()
    me.starts()
    me.page.reload()
    me.ends()
    kept = me.conversation()["messages"][-1]
    assert kept["status"] == "complete"
    assert words(me.text.inner_text()) == words(kept["content"])


def test_lost_connection_in_the_middle_of_an_answer(me, host):
    me.ask(STORY)
    me.starts()
    # Every connection breaks; Playwright's own `set_offline` would leave the running one alone.
    with me.page.expect_request("**/stream"):
        host.run_expect([0], "pkill -9 -f '[n]ginx: worker process'")
    me.ends()
    kept = me.conversation()["messages"][-1]
    assert kept["status"] == "complete"
    assert words(me.text.inner_text()) == words(kept["content"])
    # The browser notes the broken connection, and rightly so.
    me.trouble = [line for line in me.trouble if "net::ERR_" not in line]


def test_two_tabs_show_the_same_answer(me):
    me.ask(STORY)
    me.starts()
    other = Page(me.page.context.new_page(), me.email)
    other.page.goto(me.page.url)
    other.starts()
    me.ends()
    other.ends()
    assert me.text.inner_text() == other.text.inner_text()
    assert words(me.text.inner_text()) == words(me.conversation()["messages"][-1]["content"])
    assert other.trouble == []


def test_sign_out_everywhere(me, someone):
    other = someone()
    other.sign_in()
    expect(other.page.get_by_role("textbox", name="Your message")).to_be_visible()
    me.page.goto("/account")
    me.page.get_by_role("button", name="Sign out everywhere").click()
    expect(me.page.get_by_role("heading", name="Sign in")).to_be_visible()
    other.page.reload()
    expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert other.call("GET", "/api/v1/conversations")[0] == 401


def hindrances(page):
    """What axe calls serious or critical for people with disabilities on the page as it is."""
    violations = Axe().run(page).response["violations"]
    return [
        f"{page.url}: {violation['help']}: {violation['nodes'][0]['target']}"
        for violation in violations
        if violation["impact"] in {"serious", "critical"}
    ]


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everybody_can_use_it(someone, colours):
    me = someone(color_scheme=colours)
    me.page.goto("/")
    expect(me.page.get_by_role("heading", name="Sign in")).to_be_visible()
    found = hindrances(me.page)
    me.sign_in()
    me.ask("Say hello.")
    me.starts()
    me.ends()
    found += hindrances(me.page)
    me.page.goto("/account")
    expect(me.page.get_by_role("heading", name="Where you are signed in")).to_be_visible()
    found += hindrances(me.page)
    assert found == []


def test_an_answer_can_run_nothing(me):
    """What a model writes is text: a script in a conversation's history is shown, and not run."""
    me.page.goto("/")
    _, session = me.call("GET", "/api/v1/session")
    title = {"title": "<img src=x onerror=document.title='run'>"}
    status, created = me.call("POST", "/api/v1/conversations", title, session["csrf_token"])
    assert status == 201, created
    me.page.goto(f"/c/{created['id']}")
    me.ask("<script>document.title='run'</script><img src=x onerror=document.title='run'> [x](javascript:alert(1))")
    me.starts()
    me.ends()
    assert me.page.title() != "run"
    # Neither does the policy let any script of a page's own text run.
    blocked = me.page.evaluate(
        """() => new Promise(resolve => {
            document.addEventListener("securitypolicyviolation", event => resolve(event.effectiveDirective))
            const script = document.createElement("script")
            script.textContent = "document.title = 'run'"
            document.body.append(script)
            setTimeout(() => resolve("nothing was blocked"), 2000)
        })"""
    )
    assert blocked == "script-src-elem"
    assert me.page.title() != "run"
    me.trouble = [line for line in me.trouble if "Content Security Policy" not in line]
