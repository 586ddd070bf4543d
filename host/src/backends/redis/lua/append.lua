-- Appends a group of requests, each all or nothing. This is a function, which other scripts call, too: it decides and
-- writes nothing. It answers what is to be answered, and a function that writes it all; none where nothing is new.
--
-- KEYS: meta, events, ids, older ids, tenants, and prefixes: of the tenants' indexes, of the other streams' indexes, of
--       the last known values of fields, of the names of the tenants' streams, of leases
-- ARGV: epoch, dedup window, version of the change scopes, streams of a tenant; of all events, one after the other: the
--       keys of their ids (16 bytes each), and of each the hash of its content and its number in the group (16 and 2
--       bytes); how many requests and chunks there are; then
--       for each request: tenant, stream or '' for events, the name of a lease and its generation or '' twice, number of
--       events, and of one that is sent again where the log was when it was sent first, or '';
--       for each chunk, the next events of one stream: tenant, stream, number of events, their bytes as they are in an
--       entry, and the length of each (4 bytes);
--       for each event that change streams may get: its number, and five texts with their length before them, the
--       streams' names by line, and the aggregate, the key, the expected text and the new text of last known values
-- Answers {0, newest, answer...}, one answer for each request: {1, first position} when all are new,
-- {3, position...} with a minus before a known one, {2, index, position, hash} when an id is taken,
-- {4, index, position...} when the last known values are others than expected, with the positions of the events before,
-- {5} when the tenant has too many streams, {6} when the lease is another one by now, {7} when the log may have had the
-- events and forgotten their ids since.
-- {1, epoch} says that the log is another one, or has other change scopes, or that a tenant's index or the ids are gone;
-- nothing is written then.
--
-- Of an event that is new, no string is made but those for its id: the server hashes every string of a script byte by
-- byte. So events come in chunks, which are entries as they stand while all of them are new.
-- Whatever can be refused (a wrong type, no memory, a read-only server) is met before or in the first write: a script
-- is never rolled back.
local function log_append(KEYS, ARGV)
  local meta = redis.call('HMGET', KEYS[1], 'epoch', 'position', 'trimmed', 'time', 'ids_from', 'scopes',
    'base')
  if meta[1] ~= ARGV[1] or (meta[6] or '0') ~= ARGV[3] then return {1, meta[1] or ''} end
  local window, streams_max, all_keys, kept = tonumber(ARGV[2]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
  local requests, chunks, total = tonumber(ARGV[7]), tonumber(ARGV[8]), #all_keys / 16
  local position, ids_from = tonumber(meta[2]), tonumber(meta[5])
  local horizon = math.max(tonumber(meta[3]), position - window)
  local format, sub, byte = string.format, string.sub, string.byte
  local chunks_at = 9 + requests * 6
  -- The hashes of ids, where there have to be some.
  local older = redis.call('EXISTS', KEYS[4]) == 1
  if position > ids_from and redis.call('EXISTS', KEYS[3]) == 0 then return {1, meta[1]} end
  if ids_from > tonumber(meta[7] or 0) and not older then return {1, meta[1]} end

  -- What is known under the ids: at most 4,000 arguments fit a call.
  local keys, found = {}, {}
  for i = 1, total do keys[i] = sub(all_keys, i * 16 - 15, i * 16) end
  for from = 1, total, 4000 do
    local upto = math.min(from + 3999, total)
    for i, value in ipairs(redis.call('HMGET', KEYS[3], unpack(keys, from, upto))) do
      if value then found[from + i - 1] = value end
    end
    if older then
      for i, value in ipairs(redis.call('HMGET', KEYS[4], unpack(keys, from, upto))) do
        if value and not found[from + i - 1] then found[from + i - 1] = value end
      end
    end
  end

  -- The names of events' change streams and their last known values, by number.
  local described = {}
  for at = chunks_at + chunks * 5, #ARGV, 2 do described[tonumber(ARGV[at])] = ARGV[at + 1] end
  local any_described = next(described) ~= nil

  -- Of the whole group: ids that are new, in pairs of key and value, and by key; positions of new events and names of their
  -- change streams, by number; last known values by aggregate and key; streams that are new by tenant.
  local answers, ids, fresh, places, names, values, begun = {}, {}, {}, {}, {}, {}, {}

  -- The place of a known event. A value is the hash, the event's number in its group, and what its place is more than that.
  local function place(value) return tonumber(sub(value, 19)) + byte(value, 17) * 256 + byte(value, 18) end

  -- Whether a tenant may write to a stream. One that is new counts from here on.
  local function admitted(tenant, stream)
    if stream == '' then return true end
    local mine = begun[tenant] or {count = 0, names = {}}
    if mine.names[stream] or redis.call('SISMEMBER', KEYS[9] .. tenant, stream) == 1 then return true end
    if redis.call('SCARD', KEYS[9] .. tenant) + mine.count >= streams_max then return false end
    mine.names[stream], mine.count = true, mine.count + 1
    begun[tenant] = mine
    return true
  end

  local base, base_text = 0, '0'

  -- One request, whose events come after this number.
  local function apply(tenant, stream, before, count)
    if not admitted(tenant, stream) then return {5} end
    local answer, newest = {3}, position
    -- Of this request alone: what is refused leaves nothing.
    local named, later = {}, {}
    for i = 1, count do
      local number = before + i
      local value = fresh[keys[number]]
      if not value then
        value = found[number]
        if value and place(value) <= horizon then value = nil end
      end
      if value then
        if sub(value, 1, 16) ~= sub(kept, number * 18 - 17, number * 18 - 2) then
          return {2, i - 1, place(value), sub(value, 1, 16)}
        end
        answer[i + 1] = -place(value)
      else
        if any_described and described[number] then
          local aggregate, key, expected, new
          named[number], aggregate, key, expected, new = struct.unpack('>I4c0I4c0I4c0I4c0I4c0', described[number])
          if aggregate ~= '' then
            local of = aggregate .. '\0' .. key
            local now = later[of] or values[of]
            now = now and now.text or (not now and redis.call('HGET', KEYS[8] .. aggregate, key)) or ''
            if now ~= expected then
              table.remove(answer, 1)
              return {4, i - 1, unpack(answer)}
            end
            if new ~= now then later[of] = {aggregate = aggregate, key = key, text = new} end
          end
        end
        newest = newest + 1
        answer[i + 1] = newest
      end
    end
    for of, value in pairs(later) do values[of] = value end
    for number, list in pairs(named) do names[number] = list end
    local next_id = #ids
    for i = 1, count do
      local at, number = answer[i + 1], before + i
      if at > 0 then
        if at - number ~= base then
          base = at - number
          base_text = format('%.0f', base)
        end
        local value = sub(kept, number * 18 - 17, number * 18) .. base_text
        fresh[keys[number]], places[number] = value, at
        ids[next_id + 1], ids[next_id + 2] = keys[number], value
        next_id = next_id + 2
      end
    end
    local first, all = position + 1, newest == position + count
    position = newest
    if all then return {1, first} end
    return answer
  end

  local number = 0
  for at = 9, chunks_at - 1, 6 do
    local lease, count, tried = ARGV[at + 2], tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    if lease ~= '' and redis.call('HGET', KEYS[10] .. lease, 'generation') ~= ARGV[at + 3] then
      answers[#answers + 1] = {6}
    elseif tried and tried < horizon then
      answers[#answers + 1] = {7}
    else
      answers[#answers + 1] = apply(ARGV[at], ARGV[at + 1], number, count)
    end
    number = number + count
  end

  -- The entries, and what the indexes of change streams and of streams with a name get: where an event lies in its entry.
  local entries, changes = {}, {}

  -- Makes an entry of those events of a chunk that are new.
  local function enter(tenant, stream, before, count, bytes, lengths)
    local first, last = places[before + 1], places[before + count]
    -- Places of new events go up by one.
    local whole = first and last and last - first == count - 1
    if whole and stream == '' and not any_described then
      entries[#entries + 1] = {tenant = tenant, stream = stream, last = last, count = count, bytes = bytes}
      return
    end
    local parts, marks, new, from, offset = {sub(bytes, 1, 1)}, {}, 0, 2, 1
    for i = 1, count do
      local length, at = struct.unpack('>I4', lengths, i * 4 - 3), places[before + i]
      if at then
        local function index(name)
          changes[#changes + 1] =
            {KEYS[7] .. tenant .. ':' .. name, format('%.0f-0', at), format('%d %d', offset, length)}
        end
        if stream ~= '' then index(stream) end
        for name in string.gmatch(names[before + i] or '', '[^\n]+') do
          marks[#marks + 1] = format('%d\t%s', new, name)
          index(name)
        end
        if not whole then parts[#parts + 1] = sub(bytes, from, from + length - 1) end
        new, offset, last = new + 1, offset + length, at
      end
      from = from + length
    end
    if new > 0 then
      if not whole then bytes = table.concat(parts) end
      entries[#entries + 1] = {tenant = tenant, stream = stream, last = last, count = new, bytes = bytes,
        marks = #marks > 0 and table.concat(marks, '\n')}
    end
  end

  number = 0
  for at = chunks_at, chunks_at + chunks * 5 - 1, 5 do
    local count = tonumber(ARGV[at + 2])
    enter(ARGV[at], ARGV[at + 1], number, count, ARGV[at + 3], ARGV[at + 4])
    number = number + count
  end

  if #entries == 0 then return {0, position, unpack(answers)} end
  local clock = redis.call('TIME')
  local time = math.max(tonumber(clock[1]) * 1000000 + tonumber(clock[2]), tonumber(meta[4]))
  redis.call('XLEN', KEYS[2])
  redis.call('SCARD', KEYS[5])
  for _, entry in ipairs(entries) do
    local mine = KEYS[6] .. entry.tenant
    if redis.call('XLEN', mine) == 0 and redis.call('EXISTS', mine) == 0
      and redis.call('SISMEMBER', KEYS[5], entry.tenant) == 1 then return {1, meta[1]} end
  end
  for _, change in ipairs(changes) do redis.call('XLEN', change[1]) end
  local function write()
    for _, entry in ipairs(entries) do
      local id = format('%.0f-%d', entry.last, entry.count)
      local fields = {'t', entry.tenant, 'a', format('%.0f', time), 'e', entry.bytes}
      if entry.stream ~= '' then
        fields[7], fields[8] = 's', entry.stream
      elseif entry.marks then
        fields[7], fields[8] = 'c', entry.marks
      end
      redis.call('XADD', KEYS[2], id, unpack(fields))
      if entry.stream == '' then
        redis.call('XADD', KEYS[6] .. entry.tenant, id, '', '')
        if redis.call('SISMEMBER', KEYS[5], entry.tenant) == 0 then
          redis.call('SADD', KEYS[5], entry.tenant)
          redis.call('HINCRBY', KEYS[1], 'tenants', 1)
        end
      end
    end
    for _, change in ipairs(changes) do redis.call('XADD', change[1], change[2], 'o', change[3]) end
    for tenant, mine in pairs(begun) do
      for stream in pairs(mine.names) do redis.call('SADD', KEYS[9] .. tenant, stream) end
    end
    for _, value in pairs(values) do
      if value.text == '' then
        redis.call('HDEL', KEYS[8] .. value.aggregate, value.key)
      else
        redis.call('HSET', KEYS[8] .. value.aggregate, value.key, value.text)
      end
    end
    -- Two hashes of ids, the older one of which goes as a whole, hold the window and at most as much again.
    if position - ids_from > window then
      redis.call('UNLINK', KEYS[4])
      if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('RENAME', KEYS[3], KEYS[4]) end
      ids_from = position - #ids / 2
    end
    for from = 1, #ids, 4000 do
      redis.call('HSET', KEYS[3], unpack(ids, from, math.min(from + 3999, #ids)))
    end
    redis.call('HSET', KEYS[1], 'position', format('%.0f', position), 'time', format('%.0f', time),
      'ids_from', format('%.0f', ids_from))
  end
  return {0, position, unpack(answers)}, write
end
