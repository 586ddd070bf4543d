-- Processes and their channels: the beginning of every script about them.
--
-- KEYS: the prefix of all keys of channels, meta of the log
-- ARGV: what the host knows to be durable of the store: the id of its life, the life, changes so far, the tag of the last
--       one; an id for a life that begins here, the tag of this call, changes that the feed keeps; then what each needs
-- Answers {what came of it, id of the life, the life, changes so far, the tag of the last one, ...}.
--
-- A process is called `tenant:name`, and its channels that with `_` and a name behind it. Behind the prefix are
--   meta (hash)             id, life, count (of changes), tag (of the last one), log (its epoch), processes, channels
--   feed (stream)           a change each, under its number: k(ind), n(ame), c(hannel), a(t), i(ncarnation), t(ag)
--   process: (hashes)       incarnation, life, version, tag, process (JSON), bytes (of all channels), names (of them, in
--                           order), and by channel channel: and senders: (JSON) and numbers:
--   log: (streams)          entries of a channel under their positions: h(eader, JSON), p(ayload)
--   marks: (lists)          `bytes:sequence:sender` of the same entries, so that payloads are not read to be counted
--   names: (sorted sets)    processes of a tenant by name; closed (sorted set): closed ones by when they were
--   carried: (sorted sets)  by tenant and plugin, keys of what the plugin has appended or was refused, each by where the
--                           log was then; carriers (hash): in which epoch of the log that is
-- Numbers of a channel are those of its record: newest, oldest, hot, bytes, archived bytes; then the life they are of.
local call, format = redis.call, string.format
local P = KEYS[1]
local function whole(number) return format('%.0f', number) end

-- How many positions and versions a life has: those of a later one are above all of an earlier one.
local STEP = 4294967296

local meta = call('HMGET', P .. 'meta', 'id', 'life', 'count', 'tag', 'log')
local id, life, count, tag = meta[1], tonumber(meta[2] or 0), tonumber(meta[3] or 0), meta[4] or ''
local known = {id = ARGV[1], life = tonumber(ARGV[2]), count = tonumber(ARGV[3]), tag = ARGV[4]}
local epoch, former = call('HGET', KEYS[2], 'epoch') or '', meta[5] or ''

-- Whether the server has forgotten what this host knows to have been durable.
local function went_back()
  if known.id == '' then return false end
  if not id then return true end
  if id ~= known.id then return life <= known.life end
  if count < known.count then return true end
  if known.tag == '' then return false end
  local at = whole(known.count) .. '-0'
  local there = call('XRANGE', P .. 'feed', at, at)[1]
  -- The feed may be shorter than that; then nothing speaks against it.
  return (there and there[2][12] ~= known.tag) or false
end

if not id or went_back() or (former ~= '' and epoch ~= '' and former ~= epoch) then
  if not id then call('UNLINK', P .. 'feed') end
  if id or known.id ~= '' then life = math.max(life, known.life) + 1 end
  id = ARGV[5]
  call('HSET', P .. 'meta', 'id', id, 'life', whole(life), 'log', epoch)
elseif former == '' and epoch ~= '' then
  call('HSET', P .. 'meta', 'log', epoch)
end

local function answer(code, ...) return {code, id, whole(life), whole(count), tag, ...} end

-- Takes in keys of what a plugin has appended for a tenant (`tenant:plugin`), so many at most, and forgets those of before
-- all that the log has.
local function remember(of, keys, most)
  local carried, at = P .. 'carried:' .. of, call('HMGET', KEYS[2], 'position', 'trimmed')
  if call('HGET', P .. 'carriers', of) ~= epoch then
    call('UNLINK', carried)
    call('HSET', P .. 'carriers', of, epoch)
  end
  for _, key in ipairs(keys) do call('ZADD', carried, at[1] or '0', key) end
  call('ZREMRANGEBYSCORE', carried, '-inf', '(' .. (at[2] or '0'))
  call('ZREMRANGEBYRANK', carried, 0, -1 - tonumber(most))
end

-- Which of some keys are among these, by their numbers.
local function carried_before(of, keys)
  local found = {}
  if call('HGET', P .. 'carriers', of) ~= epoch then return found end
  for i, key in ipairs(keys) do
    if call('ZSCORE', P .. 'carried:' .. of, key) then found[#found + 1] = i end
  end
  return found
end

local function process_key(name) return P .. 'process:' .. name end
local function log_key(name, channel) return P .. 'log:' .. name .. '_' .. channel end
local function marks_key(name, channel) return P .. 'marks:' .. name .. '_' .. channel end

-- Tells of a change, as the first thing that is written of it: a full server then refuses the whole.
local function tell(kind, name, channel, at, incarnation)
  count, tag = count + 1, ARGV[6]
  call('XADD', P .. 'feed', 'MAXLEN', '~', ARGV[7], whole(count) .. '-0', 'k', kind, 'n', name, 'c', channel, 'a', at,
    'i', incarnation, 't', tag)
  call('HSET', P .. 'meta', 'count', whole(count), 'tag', tag)
end

-- A process of an earlier life: from here on its version is above all that anybody knows of it.
local function adopt(name)
  local of = call('HMGET', process_key(name), 'life', 'version')
  if of[1] and tonumber(of[1]) < life then
    call('HSET', process_key(name), 'life', whole(life), 'version', whole(life * STEP + tonumber(of[2]) % STEP))
  end
end

local function numbers(text)
  local newest, oldest, hot, bytes, archived, of = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return {newest = tonumber(newest), oldest = tonumber(oldest), hot = tonumber(hot), bytes = tonumber(bytes),
    archived = tonumber(archived), life = tonumber(of)}
end

local function text(n)
  return format('%.0f %.0f %.0f %.0f %.0f %.0f', n.newest, n.oldest, n.hot, n.bytes, n.archived, n.life)
end

-- A process with one of its channels, or with all: {incarnation, tag, version, process, bytes, then of each channel its
-- name, the channel, its senders, its numbers}; {} where there is none.
local function record(name, only)
  local key = process_key(name)
  local of = call('HMGET', key, 'incarnation', 'tag', 'version', 'process', 'bytes', 'names')
  if not of[1] then return {} end
  local found = {of[1], of[2], of[3], of[4], of[5]}
  for channel in string.gmatch(of[6], '[^\n]+') do
    if not only or channel == only then
      local part = call('HMGET', key, 'channel:' .. channel, 'senders:' .. channel, 'numbers:' .. channel)
      local at = #found
      found[at + 1], found[at + 2], found[at + 3], found[at + 4] = channel, part[1], part[2], part[3]
    end
  end
  return found
end

-- Whether the entries of a channel are not those that its numbers speak of: somebody else has removed some. Then the
-- others go, too, and all of them count as dropped.
local function damaged(name, channel, n)
  local log, marks, entries = log_key(name, channel), marks_key(name, channel), n.newest + 1 - n.oldest
  if call('XLEN', log) == entries and call('LLEN', marks) == entries then return false end
  local key = process_key(name)
  local of = call('HMGET', key, 'incarnation', 'bytes')
  tell('a', name, channel, whole(n.newest), of[1])
  call('UNLINK', log, marks)
  local lost = n.bytes + n.archived
  n.oldest, n.hot, n.bytes, n.archived = n.newest + 1, n.newest + 1, 0, 0
  call('HSET', key, 'numbers:' .. channel, text(n), 'bytes', whole(math.max(0, tonumber(of[2]) - lost)))
  return true
end
