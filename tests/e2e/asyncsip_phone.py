"""A phone built on asyncsip 0.1.2, run as a process of its own.

    python asyncsip_phone.py SERVER-IP SERVER-PORT USER PASSWORD DOMAIN OWN-PORT X-PUSH

It REGISTERs with the push header, answers the INVITEs that come and says on stdout what happens.
"""

import asyncio
import sys
import types

# asyncsip was written for Python 3.6; this decorator is all it misses.
asyncio.coroutine = types.coroutine  # type: ignore[attr-defined]

import asyncsip  # noqa: E402
from asyncsip.contact import Contact  # noqa: E402
from asyncsip.dialplan import BaseDialplan  # noqa: E402

SDP = (
    "v=0\r\no=- 3 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio 40004 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Dialplan(BaseDialplan):
    async def resolve(self, method, message, **kwargs):
        return answer if method == "INVITE" else None


async def answer(request, message):
    say(f"invited [{message.headers.get('X-Push-Id', '')}]")
    keep = {"Record-Route": message.headers["Record-Route"]}
    dialog = await request.prepare(180, headers=keep)
    await dialog.reply(
        message, 200, payload=SDP, headers={**keep, "Content-Type": "application/sdp"}
    )
    say("answered")
    async for message in dialog:
        if message.method == "BYE":
            await dialog.reply(message, 200)
            say("hung up")


async def main(ip, port, user, password, domain, own_port, x_push):
    app = asyncsip.Application(
        loop=asyncio.get_running_loop(),
        dialplan=Dialplan(),
        defaults={"override_contact_host": "127.0.0.1"},
        dns_resolver=None,
    )
    peer = await app.connect((ip, int(port)), local_addr=("127.0.0.1", int(own_port)))
    me = f"sip:{user}@{domain}"
    registration = await peer.register(
        expires=600,
        from_details=Contact.from_header(me),
        to_details=Contact.from_header(me),
        contact_details=Contact.from_header(f"sip:{user}@127.0.0.1:{own_port}"),
        headers={"X-Push": x_push, "Expires": 600},
        password=password,
    )
    say(f"registered [{registration.status_code}]")
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
