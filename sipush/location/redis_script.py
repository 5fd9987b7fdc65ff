"""The Lua that Redis runs: one script is one atomic step.

BIND does what ``core.location_update.apply`` does; the contract tests hold the two together.
Rows are passed through as the JSON text that came and never written anew, as Lua would round the
times. Everything is decided before the first write, and what may fail for want of memory is
written first, so that an error leaves nothing half done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest under which EVALSHA finds it.

    To one that takes ``many`` commands that follow each other go as one: their keys, and for each
    the number of its arguments and those. It returns a list: what each returns, or its error.
    """

    text: bytes
    keys: int
    "How many a command has."
    many: bool = False
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.text).hexdigest().encode())


LOOKUP = Script(
    b"""-- KEYS: bindings, push, messages.
-- Returns {bindings, push records, fields of messages}, rows that have expired included.
local call = redis.call
return {call('HVALS', KEYS[1]), call('HVALS', KEYS[2]), call('HLEN', KEYS[3])}
""",
    keys=3,
)

BIND = Script(
    b"""-- KEYS of each: bindings, push, messages.
-- ARGV of each: wakes channel, wake event, now, Call-ID, CSeq, max_contacts, max_push_records, then
-- lists, each its length first: bind and push (device, milliseconds left, JSON) and, unless there
-- is nothing in them, unbind (device, contact_key), unpushed (device), push_off (device, token) and
-- unbind_all ("*", if so).
-- Each returns {bindings, push records, whether there are messages (0 or 1)} as they are now, or
-- the name of a Refusal. A row that came with this call is returned as its place in its list,
-- counted from 1, as the caller has it already. If those that came are all there is, returns only
-- whether there are messages.

local call, events = redis.call, {}

-- Strings within JSON have no quote without a backslash, so these are the members themselves,
-- written by us: a Call-ID with a quote, and rows of others, are left to what follows.
local function order(row)
  local start = string.find(row, '"call_id":"', 1, true)
  return string.match(row, '^"call_id":"([^"]*)","cseq":(%d+),', start)
end

local function rows(flat, now)
  local live, expired = {}, {}
  for i = 1, #flat, 2 do
    local row = cjson.decode(flat[i + 1])
    if row.expires_epoch > now then
      row.json = flat[i + 1]
      live[flat[i]] = row
    else
      expired[#expired + 1] = flat[i]
    end
  end
  return live, expired
end

local function reply(live)
  local out = {}
  for _, row in pairs(live) do out[#out + 1] = row.number or row.json end
  return out
end

local function messages(key)
  return call('HLEN', key) > 1 and 1 or 0
end

local function without_reg_id(device)
  return string.match(device, '^(instance:.*);%d+$') or device
end

local function is_instance(device) return string.sub(device, 1, 9) == 'instance:' end

local function replaces(new, device, row)
  if new.device == device then return true end
  local instances = is_instance(new.device) and is_instance(device)
  return new.contact_key == row.contact_key and not instances
end

local function same_tokens(one, other)
  return one.app_id == other.app_id and one.platform == other.platform
    and one.call_token == other.call_token and one.message_token == other.message_token
end

local function bind_one(argv, bindings_key, push_key, messages_key)
  local bound, pushed = call('HGETALL', bindings_key), call('HKEYS', push_key)

  -- Most REGISTERs by far: a user's only device refreshes itself. What follows after this block
  -- would come to the same, with everything decoded and compared.
  local device = argv[9]
  if argv[8] == '1' and argv[6] ~= '0' and argv[7] ~= '0'
    and (bound[1] == device or not bound[1]) and not bound[3]
    and (pushed[1] == argv[13] or not pushed[1]) and not pushed[2]
    and (argv[12] == '1' and argv[13] == device and not argv[16]
      or argv[12] == '0' and not argv[13])
  then
    local call_id, cseq = order(bound[2] or '')
    if not bound[1] or call_id and
      (call_id ~= order(argv[11]) or tonumber(cseq) < tonumber(argv[5]))
    then
      call('HSET', bindings_key, device, argv[11])
      if argv[13] then
        call('HSET', push_key, device, argv[15])
        call('PEXPIRE', push_key, argv[14])
      end
      call('PEXPIRE', bindings_key, argv[10])
      events[#events + 1] = argv[2]
      return messages(messages_key)
    end
  end

  local position = 7
  local function list(width)
    local items = {}
    position = position + 1
    for n = 1, tonumber(argv[position] or 0) do
      items[n] = {unpack(argv, position + 1, position + width)}
      position = position + width
    end
    return items
  end

  local now, call_id, cseq = tonumber(argv[3]), argv[4], tonumber(argv[5])
  local bind, push, unbind, unpushed, push_off = list(3), list(3), list(2), list(1), list(2)
  local unbind_all = #list(1) > 0
  local bindings, gone_bindings = rows(bound, now)
  local records, gone_records = rows(call('HGETALL', push_key), now)
  local function new_row(number, item)
    local row = cjson.decode(item[3])
    row.json, row.number = item[3], number
    return row
  end
  for n, b in ipairs(bind) do bind[n] = new_row(n, b) end
  for n, p in ipairs(push) do push[n] = new_row(n, p) end

  local function unbinds(device, row)
    if unbind_all then return true end
    for _, u in ipairs(unbind) do
      if u[1] == device or u[2] == row.contact_key then return true end
    end
    return false
  end

  local before, unbound = 0, {}
  for device, row in pairs(bindings) do
    before = before + 1
    local touched, repeated = unbinds(device, row), false
    if touched then unbound[without_reg_id(device)] = true end
    for _, b in ipairs(bind) do
      touched = touched or replaces(b, device, row)
      repeated = repeated or (b.device == device and b.contact_key == row.contact_key)
    end
    local newer = cseq > row.cseq or (cseq == row.cseq and repeated)
    if touched and row.call_id == call_id and not newer then return 'out-of-order' end
  end
  for _, u in ipairs(unbind) do unbound[without_reg_id(u[1])] = true end

  local function drop(live, gone, device)
    if live[device] then
      live[device] = nil
      gone[#gone + 1] = device
    end
  end

  for device, row in pairs(bindings) do
    if unbinds(device, row) then drop(bindings, gone_bindings, device) end
  end
  for _, b in ipairs(bind) do
    for device, row in pairs(bindings) do
      if replaces(b, device, row) then
        drop(bindings, gone_bindings, device)
        if device ~= b.device then drop(records, gone_records, device) end
      end
    end
    bindings[b.device] = b
  end
  for device in pairs(unbind_all and records or {}) do unbound[without_reg_id(device)] = true end
  for device in pairs(bindings) do unbound[without_reg_id(device)] = nil end
  local unasked = {}
  for _, u in ipairs(unpushed) do unasked[u[1]] = true end
  for device, row in pairs(records) do
    local of_uri = row.dialect == 'rfc8599' or row.dialect == 'linphone'
    if of_uri and (unasked[device] or unbound[without_reg_id(device)]) then
      drop(records, gone_records, device)
    end
  end
  for _, p in ipairs(push_off) do
    for device, row in pairs(records) do
      local token = p[2] ~= '' and (p[2] == row.call_token or p[2] == row.message_token)
      if device == p[1] or token then drop(records, gone_records, device) end
    end
  end
  for _, p in ipairs(push) do
    drop(records, gone_records, p.device)
    for device, row in pairs(records) do
      if same_tokens(p, row) then drop(records, gone_records, device) end
    end
    records[p.device] = p
  end

  local after = 0
  for _ in pairs(bindings) do after = after + 1 end
  if after > math.max(tonumber(argv[6]), before) then return 'too-many-contacts' end

  local newest = {}
  for device in pairs(records) do newest[#newest + 1] = device end
  if #newest > tonumber(argv[7]) then
    table.sort(newest, function(one, other)
      local a, b = records[one].updated_epoch, records[other].updated_epoch
      if a == b then return one < other end
      return a > b
    end)
    for n = tonumber(argv[7]) + 1, #newest do drop(records, gone_records, newest[n]) end
  end

  local function write(key, live)
    local put, latest = {}, 0
    for device, row in pairs(live) do
      latest = math.max(latest, row.expires_epoch)
      if row.number then
        put[#put + 1] = device
        put[#put + 1] = row.json
      end
    end
    if #put > 0 then call('HSET', key, unpack(put)) end
    return latest
  end

  local function tidy(key, live, gone, latest)
    local dead = {}
    for _, device in ipairs(gone) do
      if not live[device] then dead[#dead + 1] = device end
    end
    if #dead > 0 then call('HDEL', key, unpack(dead)) end
    if next(live) then call('PEXPIRE', key, math.ceil((latest - now) * 1000)) end
  end

  local latest_binding, latest_record = write(bindings_key, bindings), write(push_key, records)
  tidy(bindings_key, bindings, gone_bindings, latest_binding)
  tidy(push_key, records, gone_records, latest_record)
  events[#events + 1] = argv[2]
  return {reply(bindings), reply(records), messages(messages_key)}
end

local results, position = {}, 1
for key = 1, #KEYS, 3 do
  local argv = {}
  for n = 1, tonumber(ARGV[position]) do argv[n] = ARGV[position + n] end
  position = position + #argv + 1
  local done, result = pcall(bind_one, argv, KEYS[key], KEYS[key + 1], KEYS[key + 2])
  if not done then
    local text = type(result) == 'table' and result.err or result
    if string.find(text, 'READONLY', 1, true) == 1 then error(result) end  -- of a primary no more
    result = {err = text}
  end
  results[#results + 1] = result
end
if events[1] then call('PUBLISH', ARGV[2], table.concat(events, '\\n')) end
return results
""",
    keys=3,
    many=True,
)

REMOVE_PUSH_RECORD = Script(
    b"""-- KEYS: push. ARGV: device, JSON. Returns 1 if the device's record had the same tokens.
local json = redis.call('HGET', KEYS[1], ARGV[1])
if not json then return 0 end
local old, dead = cjson.decode(json), cjson.decode(ARGV[2])
for _, name in ipairs({'app_id', 'platform', 'call_token', 'message_token'}) do
  if old[name] ~= dead[name] then return 0 end
end
return redis.call('HDEL', KEYS[1], ARGV[1])
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

local now = tonumber(ARGV[1])
local id, latest, key = parts(ARGV[2])
local count, dead = 0, {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  local other, expires, same = parts(name)
  if other and expires <= now then
    dead[#dead + 1] = name
  elseif other then
    if same == key then return {'repeated', string.format('%.0f', other)} end
    count, latest = count + 1, math.max(latest, expires)
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
