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

    To one that takes ``many`` commands that wait together go as one: their keys, the arguments
    that they share, and for each the number of its own and those. It returns a list: what each
    returns, or its error.
    """

    text: bytes
    keys: int
    "How many a command has."
    many: bool = False
    shared: int = 0
    "How many arguments are the same for all, and come first."
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

_PARTS = b"""
-- Of a row: the binding and the push record. A person may have written the binding alone.
local function parts(row)
  local between = string.find(row, '\\n\\n', 1, true)
  if not between then return string.match(row, '^(.-)%s*$'), '' end
  return string.sub(row, 1, between - 1), string.sub(row, between + 2)
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

BIND = Script(
    _FAILED
    + _PARTS
    + b"""-- KEYS of each: devices, messages.
-- ARGV of all: wakes channel. Of each: wake event, terms (JSON: now, max_contacts,
-- max_push_records), Call-ID, CSeq, then device, milliseconds left and row, if there is but this
-- one, with a binding. Else lists, each its length first: rows (the same three), unbind (device,
-- contact_key), unpushed (device), push_off (device, token), unbind_all ("*", if so).
-- Each returns {bindings, push records, whether there are messages (0 or 1)} as they are now, or
-- the name of a Refusal. Each is {device, JSON}, or what came with this call, as the caller has it
-- already, the place of its row, counted from 1. If that is all there is, returns only whether
-- there are messages.

local ARGV, call, events = ARGV, redis.call, {}

-- As we write a row. A Call-ID with a quote or backslash, and rows of others, are left to what
-- follows.
local function order(row)
  return string.match(row, '^{"call_id":"([^"\\\\]*)","cseq":(%d+),')
end

local function ends_in_record(row) return string.byte(row, -1) == 125 end  -- }

local message_keys = {}
for key = 2, #KEYS, 2 do message_keys[#message_keys + 1] = KEYS[key] end
local any_messages = call('EXISTS', unpack(message_keys)) > 0

local function messages(key)
  return any_messages and call('HLEN', key) > 1 and 1 or 0
end

local NOTHING = {json = '', expires_epoch = 0}

local function live(device, json, now, number)
  if json == '' then return nil end
  local record = cjson.decode(json)
  if record.expires_epoch <= now then return nil end
  record.device, record.json, record.number = device, json, number
  record.contact_key = record.contact_key or record.contact
  record.message_token = record.message_token or record.call_token
  return record
end

local function reply(records)
  local out = {}
  for device, record in pairs(records) do
    out[#out + 1] = record.number or {device, record.json}
  end
  return out
end

local function without_reg_id(device)
  return string.match(device, '^(instance:.*);%d+$') or device
end

local function is_instance(device) return string.sub(device, 1, 9) == 'instance:' end

local function replaces(new, device, old)
  if new.device == device then return true end
  local instances = is_instance(new.device) and is_instance(device)
  return new.contact_key == old.contact_key and not instances
end

local function same_tokens(one, other)
  return one.app_id == other.app_id and one.platform == other.platform
    and one.call_token == other.call_token and one.message_token == other.message_token
end

-- Its arguments are first to last of ARGV.
local function bind_one(first, last, devices_key, messages_key)
  local flat = call('HGETALL', devices_key)
  local call_id, cseq = ARGV[first + 2], tonumber(ARGV[first + 3])
  local is_plain = last == first + 6

  -- Most REGISTERs by far: a user's only device refreshes itself. What follows after this block
  -- would come to the same, with everything decoded and compared.
  if is_plain and not flat[3] then
    local device, row, stored = ARGV[first + 4], ARGV[first + 6], flat[2]
    local old_call_id, old_cseq
    if flat[1] == device and (ends_in_record(row) or not ends_in_record(stored)) then
      old_call_id, old_cseq = order(stored)
    end
    if not stored or old_call_id and (old_call_id ~= call_id or tonumber(old_cseq) < cseq) then
      call('HSET', devices_key, device, row)
      call('PEXPIRE', devices_key, ARGV[first + 5])
      events[#events + 1] = ARGV[first]
      return messages(messages_key)
    end
  end

  local position = first + 3
  local function list(width)
    local items = {}
    position = position + 1
    for n = 1, tonumber(ARGV[position]) do
      items[n] = {unpack(ARGV, position + 1, position + width)}
      position = position + width
    end
    return items
  end

  local now, max_contacts, max_push_records = unpack(cjson.decode(ARGV[first + 1]))
  local rows, unbind, unpushed, push_off, unbind_all = {}, {}, {}, {}, false
  if is_plain then
    rows[1] = {unpack(ARGV, first + 4, last)}
  else
    rows, unbind, unpushed, push_off = list(3), list(2), list(1), list(2)
    unbind_all = #list(1) > 0
  end
  local bind, push = {}, {}
  for n, item in ipairs(rows) do
    local binding, record = parts(item[3])
    bind[#bind + 1] = live(item[1], binding, -1, n)
    push[#push + 1] = live(item[1], record, -1, n)
  end
  local before, bindings, records = {}, {}, {}
  for n = 1, #flat, 2 do
    local device, binding, record = flat[n], parts(flat[n + 1])
    before[device] = flat[n + 1]
    bindings[device], records[device] = live(device, binding, now), live(device, record, now)
  end

  local function unbinds(device, binding)
    if unbind_all then return true end
    for _, u in ipairs(unbind) do
      if u[1] == device or u[2] == binding.contact_key then return true end
    end
    return false
  end

  local contacts, unbound = 0, {}
  for device, binding in pairs(bindings) do
    contacts = contacts + 1
    local touched, repeated = unbinds(device, binding), false
    if touched then unbound[without_reg_id(device)] = true end
    for _, b in ipairs(bind) do
      touched = touched or replaces(b, device, binding)
      repeated = repeated or (b.device == device and b.contact_key == binding.contact_key)
    end
    local newer = cseq > binding.cseq or (cseq == binding.cseq and repeated)
    if touched and binding.call_id == call_id and not newer then return 'out-of-order' end
  end
  for _, u in ipairs(unbind) do unbound[without_reg_id(u[1])] = true end

  for device, binding in pairs(bindings) do
    if unbinds(device, binding) then bindings[device] = nil end
  end
  for _, b in ipairs(bind) do
    for device, binding in pairs(bindings) do
      if replaces(b, device, binding) then
        bindings[device] = nil
        if device ~= b.device then records[device] = nil end
      end
    end
    bindings[b.device] = b
  end
  for device in pairs(unbind_all and records or {}) do unbound[without_reg_id(device)] = true end
  for device in pairs(bindings) do unbound[without_reg_id(device)] = nil end
  local unasked = {}
  for _, u in ipairs(unpushed) do unasked[u[1]] = true end
  for device, record in pairs(records) do
    local of_uri = record.dialect == 'rfc8599' or record.dialect == 'linphone'
    if of_uri and (unasked[device] or unbound[without_reg_id(device)]) then
      records[device] = nil
    end
  end
  for _, off in ipairs(push_off) do
    for device, record in pairs(records) do
      local token = off[2]
      local same = token ~= '' and (token == record.call_token or token == record.message_token)
      if device == off[1] or same then records[device] = nil end
    end
  end
  for _, p in ipairs(push) do
    records[p.device] = nil
    for device, record in pairs(records) do
      if same_tokens(p, record) then records[device] = nil end
    end
    records[p.device] = p
  end

  local after = 0
  for _ in pairs(bindings) do after = after + 1 end
  if after > math.max(max_contacts, contacts) then return 'too-many-contacts' end

  local newest = {}
  for device in pairs(records) do newest[#newest + 1] = device end
  if #newest > max_push_records then
    table.sort(newest, function(one, other)
      local a, b = records[one].updated_epoch, records[other].updated_epoch
      if a == b then return one < other end
      return a > b
    end)
    for n = max_push_records + 1, #newest do records[newest[n]] = nil end
  end

  for device in pairs(bindings) do before[device] = before[device] or '' end
  for device in pairs(records) do before[device] = before[device] or '' end
  local put, dead, latest = {}, {}, 0
  for device, old in pairs(before) do
    local binding, record = bindings[device] or NOTHING, records[device] or NOTHING
    local row = binding.json .. '\\n\\n' .. record.json
    if row == '\\n\\n' then
      dead[#dead + 1] = device
    elseif row ~= old then
      put[#put + 1] = device
      put[#put + 1] = row
    end
    latest = math.max(latest, binding.expires_epoch, record.expires_epoch)
  end
  if put[1] then call('HSET', devices_key, unpack(put)) end
  if dead[1] then call('HDEL', devices_key, unpack(dead)) end
  if latest > 0 then call('PEXPIRE', devices_key, math.ceil((latest - now) * 1000)) end
  events[#events + 1] = ARGV[first]
  return {reply(bindings), reply(records), messages(messages_key)}
end

local results, position = {}, 2
for key = 1, #KEYS, 2 do
  local first, last = position + 1, position + tonumber(ARGV[position])
  position = last + 1
  local done, result = pcall(bind_one, first, last, KEYS[key], KEYS[key + 1])
  results[#results + 1] = done and result or failed(result)
end
if events[1] then call('PUBLISH', ARGV[1], table.concat(events, '\\n')) end
return results
""",
    keys=2,
    many=True,
    shared=1,
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
    _PARTS
    + b"""-- KEYS: devices. ARGV: device, JSON. Returns 1 if its record had the same tokens.
local binding, json = parts(redis.call('HGET', KEYS[1], ARGV[1]) or '')
if json == '' then return 0 end
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
