"""Messages to a restaurant, and what the restaurant writes down: the task of `make real`.

People fine-tune small models for work like this: free text in, one line of JSON out. The messages are written here, so
that the same rows are there on every machine; names, numbers of guests, days and times vary freely and are said in
several ways ("half past seven in the evening" is 19:30), so that an answer must be read off the message and put into
the form asked for. No message occurs twice, and nothing of them is in the model's own training but the language.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

INSTRUCTION = "Write down the booking as JSON with the keys name, guests, day and time (24 hours)."

_NAMES = (
    *("Amara Osei", "Ben Carter", "Chloe Dubois", "Daniel Kim", "Elena Petrova", "Farid Haddad", "Grace Okafor"),
    *("Hannah Weiss", "Ivan Novak", "Julia Santos", "Kenji Mori", "Lara Lind", "Marco Bianchi", "Nadia Rahman"),
    *("Oscar Lopez", "Priya Nair", "Quinn Murphy", "Rosa Jimenez", "Samuel Adeyemi", "Tara Singh", "Umar Aziz"),
    *("Vera Horvat", "William Chen", "Ximena Ruiz", "Yusuf Demir", "Zoe Martin", "Arjun Mehta", "Bianca Costa"),
    *("Carlos Vega", "Dina Cohen", "Emil Larsen", "Fatima Khan", "George Papas", "Helen Brooks", "Isaac Green"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_MESSAGES = (
    "Hello, this is {name}. Could we have a table for {guests} on {day} at {time}?",
    "Hi! I would like to book for {day}, {time}, {guests} people, please. The name is {name}.",
    "Good morning, {name} here. We are {guests} and would love to come on {day} around {time}.",
    "Please reserve a table on {day} at {time} for {guests}. Thank you, {name}",
    "My name is {name}, and I need a table for {guests} this {day}. Would {time} work for you?",
    "Is there any chance of a table for {guests} on {day}? We could be there at {time}. Best, {name}",
    "{name} again. We come on {day} after all, {guests} of us, {time} as always.",
    "For {day} I need {guests} seats at {time}. You can put it under {name}.",
    "It is my mother's birthday on {day}. We would be {guests}, at {time}, booked under {name}, if you have room.",
    "We met last week, I am {name}. Do you have something for {guests} persons at {time} on {day}?",
)


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` different rows in Alpaca's columns; the same for the same seed."""
    random_ = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        booking = {
            "name": random_.choice(_NAMES),
            "guests": random_.randint(2, 12),
            "day": random_.choice(_DAYS),
            "time": f"{random_.randint(11, 21)}:{random_.choice((0, 15, 30, 45)):02d}",
        }
        message = random_.choice(_MESSAGES).format(**_spoken(booking, random_))
        rows[message] = {"instruction": INSTRUCTION, "input": message, "output": json.dumps(booking)}
    return list(rows.values())


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """The rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _spoken(booking: dict[str, Any], random_: random.Random) -> dict[str, str]:
    """The booking as a person says it."""
    guests = booking["guests"]
    said = str(guests) if random_.random() < 0.5 else _WORDS[guests - 1]
    return {"name": booking["name"], "day": booking["day"], "guests": said, "time": _time(booking["time"], random_)}


def _time(time: str, random_: random.Random) -> str:
    """ "19:30" as 19:30, 7:30 pm or half past seven in the evening."""
    hour, minute = map(int, time.split(":"))
    form = random_.randrange(3)
    if form == 0:
        return time
    if form == 1:
        return f"{_clock(hour)}{f':{minute:02d}' if minute else ''} {'pm' if hour >= 12 else 'am'}"
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 17 else "in the evening"
    here, following = _WORDS[_clock(hour) - 1], _WORDS[_clock(hour + 1) - 1]
    words = {0: here, 15: f"quarter past {here}", 30: f"half past {here}", 45: f"quarter to {following}"}
    return f"{words[minute]} {part}"


def _clock(hour: int) -> int:
    """The hour on a clock face, 1 to 12."""
    return (hour - 1) % 12 + 1
