-- Everything else that is asked of a group.
--
-- ARGV: ..., group or '', what is asked, and what it needs.
local id, asked = ARGV[4], ARGV[5]

-- ensure: the options that it has as JSON or '' for none, those that it gets, where it begins, most groups of the stream,
-- an incarnation, most groups of the tenant. Answers whether it is new; 'options' and those that it has when they are
-- others; 'groups' and how many the stream and the tenant have when that is too many.
local function ensure()
  if epoch ~= ARGV[1] then return answer('log') end
  local g = open(id)
  if (g and g.options_text or '') ~= ARGV[6] then
    if g then save(g) end
    return answer('options', g and g.options_text or '')
  end
  if g then
    g.options_text, g.options, g.changed = ARGV[7], cjson.decode(ARGV[7]), true
    save(g)
    return answer('ok', 0)
  end
  local function groups_of(prefix)
    return call('ZLEXCOUNT', KEYS[6] .. ':names', '[' .. prefix, '[' .. prefix .. '\255')
  end
  local on_stream, of_tenant = groups_of(string.match(id, '^(.*:)[^:]*$')), groups_of(string.match(id, '^([^:]*:)'))
  if on_stream >= tonumber(ARGV[9]) or of_tenant >= tonumber(ARGV[11]) then
    return answer('groups', on_stream, of_tenant)
  end
  local start = text(math.max(tonumber(ARGV[8]), trimmed))
  for _, part in ipairs(PARTS) do call('DEL', KEYS[5] .. id .. '/' .. part) end
  call('HSET', KEYS[5] .. id, 'incarnation', ARGV[10], 'epoch', epoch, 'options', ARGV[7], 'low', start, 'frontier', start,
    'sequence', 0, 'lost', 0, 'lost_until', 0, 'stopped', 0, 'created', text(now), 'shape', '0 0 0 0 0 0 0')
  call('ZADD', KEYS[6], start, id)
  call('ZADD', KEYS[6] .. ':names', 0, id)
  return answer('ok', 1)
end

local function remove_group()
  if call('DEL', KEYS[5] .. id) == 0 then return answer('unknown') end
  for _, part in ipairs(PARTS) do call('DEL', KEYS[5] .. id .. '/' .. part) end
  for _, list in ipairs({'', ':names', ':due'}) do call('ZREM', KEYS[6] .. list, id) end
  return answer('ok')
end

-- sweep: how many groups at most. Looks after those that have something due; answers whether there may be more.
local function sweep()
  local due = call('ZRANGEBYSCORE', KEYS[6] .. ':due', '-inf', text(now), 'LIMIT', 0, ARGV[6])
  for _, each in ipairs(due) do
    local g = open(each)
    if g then
      tick(g)
      reap(g)
      g.changed = true
      save(g)
    else
      for _, list in ipairs({'', ':names', ':due'}) do call('ZREM', KEYS[6] .. list, each) end
    end
  end
  return answer('ok', #due < tonumber(ARGV[6]) and 0 or 1)
end

if asked == 'ensure' then return ensure() end
if asked == 'remove' then return remove_group() end
if asked == 'sweep' then
  if epoch ~= ARGV[1] then return answer('log') end
  return sweep()
end
local g, refused = opened()
if not g then return refused end
local told, more = {}, 0
local function tell(...)
  for _, value in ipairs({...}) do told[#told + 1] = value end
end
if asked == 'seek' then
  -- seek: where to, an incarnation.
  g.incarnation, g.stopped = ARGV[7], 0
  begin_at(g, math.max(tonumber(ARGV[6]), trimmed))
else
  tick(g)
end
if asked == 'status' then
  told = status(g)
elseif asked == 'consumers' then
  reap(g)
  local seen = call('ZRANGE', g.seen, 0, -1, 'WITHSCORES')
  for i = 1, #seen, 2 do tell(seen[i], text(tonumber(seen[i + 1])), call('HGET', g.flying, seen[i]) or 0) end
elseif asked == 'gone' then
  -- gone: steps over what somebody has deleted next in the log, and counts it as lost. Answers where the group stands, and
  -- whether it has stopped. What was taken in before is there, and stays.
  local found = g.stream == 'events' and call('XRANGE', g.index, text(g.frontier + 1) .. '-0', '+', 'COUNT', bounds.due)
  for _, each in ipairs(found or {}) do
    if g.stopped == 1 or #call('XRANGE', KEYS[2], each[1], each[1]) > 0 then break end
    local last, many = string.match(each[1], '^(%d+)-(%d+)$')
    last = tonumber(last)
    report(g, math.min(tonumber(many), last - g.frontier), last, 'foreign')
    g.frontier, g.changed = last, true
    if g.options.on_lost == 'stop' then g.stopped = 1 end
  end
  tell(text(g.frontier), g.stopped)
elseif asked == 'letters' then
  -- letters: after, how many, how many bytes unless it is one alone. Answers a list: for each position, whether it is
  -- replayed, and what is known of it; and whether there are more.
  local limit, bytes = tonumber(ARGV[7]), 0
  local found = call('ZRANGEBYSCORE', g.dead, '(' .. ARGV[6], '+inf', 'LIMIT', 0, text(limit + 1))
  for index, name in ipairs(found) do
    local letter = unpack_entry(call('HGET', g.letters, name))
    bytes = bytes + #letter[6] + #letter[3]
    if index > limit or (bytes > tonumber(ARGV[8]) and index > 1) then
      more = 1
      break
    end
    tell(name, call('ZSCORE', g.replaying, name) and 1 or 0, letter[1], letter[2], letter[3], letter[4], letter[5], letter[6])
  end
elseif asked == 'decide' then
  -- decide: position, replay or discard.
  local position, name = tonumber(ARGV[6]), ARGV[6]
  local letter = call('HGET', g.letters, name)
  if not letter then
    save(g)
    return answer('letter')
  end
  letter = unpack_entry(letter)
  g.changed = true
  local entry = read(g, position)
  if ARGV[7] == 'discard' then
    if entry and entry[REPLAYED] == 1 then remove(g, position, entry) end
    call('HDEL', g.letters, name)
    call('ZREM', g.dead, name)
    call('ZREM', g.replaying, name)
  elseif not entry then
    -- One that is replayed already, or that the group was moved back before, is delivered anyway.
    call('ZADD', g.replaying, name, name)
    insert(g, position, {letter[7], 'W', 0, letter[8], 1, '', '', 0, 0})
  end
end
save(g)
return answer('ok', told, more)
