"""The Lua that Redis runs: one script is one atomic step.

Everything is decided before the first write, and what may fail for want of memory is written first,
so that an error leaves nothing half done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest under which EVALSHA finds it.

    To one that takes ``many`` commands that wait together go as one: their keys, and for each the
    number of its arguments and those. It returns a list: what each returns, or its error.
    """

    text: bytes
    keys: int
    "How many a command has."
    many: bool = False
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.text).hexdigest().encode())


_FAILED = b"""
-- What one of many returns that failed.
local function failed(reason)
  local text = type(reason) == 'table' and reason.err or reason
  if string.find(text, 'READONLY', 1, true) == 1 then error(reason) end  -- of a primary no more
  return {err = text}
end

"""

LOOKUP = Script(
    _FAILED
    + b"""-- KEYS of each: devices, messages.
-- Each returns {{device, row, device, row ...}, fields of messages}, what has expired included.
local function look_up(devices_key, messages_key)
  return {redis.call('HGETALL', devices_key), redis.call('HLEN', messages_key)}
end

local results = {}
for key = 1, #KEYS, 2 do
  local done, result = pcall(look_up, KEYS[key], KEYS[key + 1])
  results[#results + 1] = done and result or failed(result)
end
return results
""",
    keys=2,
    many=True,
)

MAKE_DUE = Script(
    _FAILED
    + b"""-- KEYS of each: refreshes. ARGV of each: due, member, due, member ... Each returns 0.
local results, position = {}, 1
for key = 1, #KEYS do
  local last = position + tonumber(ARGV[position])
  local done, result = pcall(redis.call, 'ZADD', KEYS[key], unpack(ARGV, position + 1, last))
  position = last + 1
  results[#results + 1] = done and 0 or failed(result)
end
return results
""",
    keys=1,
    many=True,
)

REMOVE_PUSH_RECORD = Script(
    b"""-- KEYS: devices. ARGV: device, JSON. Returns 1 if its record had the same tokens.
-- A row is a binding, an empty line and a push record; of either there may be none.
local row = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local between = string.find(row, '\\n\\n', 1, true)
if not between or between + 2 > #row then return 0 end
local binding, json = string.sub(row, 1, between - 1), string.sub(row, between + 2)
local old, dead = cjson.decode(json), cjson.decode(ARGV[2])
for _, name in ipairs({'app_id', 'platform', 'call_token'}) do
  if old[name] ~= dead[name] then return 0 end
end
if (old.message_token or old.call_token) ~= (dead.message_token or dead.call_token) then
  return 0
end
if binding == '' then return redis.call('HDEL', KEYS[1], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[1], binding .. '\\n\\n')
return 1
""",
    keys=1,
)

NEXT_ID = Script(
    b"""-- KEYS: counter. ARGV: floor. Returns a number never returned before, no less than floor.
local id = math.max(tonumber(redis.call('GET', KEYS[1]) or 0) + 1, tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%.0f', id))
return id
""",
    keys=1,
)

PUT_MESSAGE = Script(
    b"""-- KEYS: messages. ARGV: now, field ("<id> <stored> <expires> <key>"), content, max_stored.
-- The field "last" holds the id put last, so that messages of two nodes never overtake each other.
-- Returns {"stored", id}, {"repeated", its earlier id}, {"full", ""}, or {"overtaken", last}.
local function parts(name)
  local id, expires, key = string.match(name, '^(%d+) %S+ (%S+) (%S+)$')
  return tonumber(id), tonumber(expires), key
end

local function is_report(key)
  return string.sub(key, 1, 7) == 'silent-'
end

local now = tonumber(ARGV[1])
local id, latest, key = parts(ARGV[2])
local count, dead = 0, {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  local other, expires, same = parts(name)
  if other and expires <= now then
    dead[#dead + 1] = name
  elseif other then
    if same == key then return {'repeated', string.format('%.0f', other)} end
    latest = math.max(latest, expires)
    if is_report(same) == is_report(key) then count = count + 1 end
  end
end
local last = tonumber(redis.call('HGET', KEYS[1], 'last') or 0)
if count >= tonumber(ARGV[4]) then return {'full', ''} end
if id <= last then return {'overtaken', string.format('%.0f', last)} end
local written = string.format('%.0f', id)
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3], 'last', written)
if #dead > 0 then redis.call('HDEL', KEYS[1], unpack(dead)) end
redis.call('PEXPIRE', KEYS[1], math.ceil((latest - now) * 1000))
return {'stored', written}
""",
    keys=1,
)

TAKE_REFRESHES = Script(
    b"""-- KEYS: refreshes. ARGV: now. Returns those due, which are then gone.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 200)
if #due > 0 then redis.call('ZREM', KEYS[1], unpack(due)) end
return due
""",
    keys=1,
)

PUT_HELD_CALL = Script(
    b"""-- KEYS: calls of the owner. ARGV: until, id, JSON. Returns 1, or 0 when it is too late.
local time = redis.call('TIME')
if tonumber(time[1]) + tonumber(time[2]) / 1000000 > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
""",
    keys=1,
)

CLAIM_HELD_CALLS = Script(
    b"""-- KEYS: leases. ARGV: prefix of the owners' call hashes, owner, lease (s), own (1, 0).
-- Renews the owner's lease and returns the calls that become its own: those of owners whose lease
-- has run out, with own also what it stored in an earlier life.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local prefix, owner, taken = ARGV[1], ARGV[2], {}
if ARGV[4] == '1' then taken = redis.call('HVALS', prefix .. owner) end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), owner)
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  local flat = redis.call('HGETALL', prefix .. dead)
  for i = 1, #flat, 2 do
    redis.call('HSET', prefix .. owner, flat[i], flat[i + 1])
    taken[#taken + 1] = flat[i + 1]
  end
  redis.call('DEL', prefix .. dead)
  redis.call('ZREM', KEYS[1], dead)
end
return taken
""",
    keys=1,
)
