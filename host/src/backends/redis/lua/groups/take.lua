-- Takes in a page of the stream, and leases what can be delivered.
--
-- ARGV: ..., group, consumer, most entries, most bytes, newest position that the host has, token of the call, whether it
--       is sent again, after, up to, and for each event of the page between them: position, bytes, key
-- Answers frontier, room, now, next due or '', whether it stopped, lost events, lost until, incarnation, bytes that were
-- leased, whether there were too many, and a list of leases: position, attempt, sequence, deadline, whether it is replayed, and its bytes then. 'own', 'all' and 'consumers'
-- are bounds, with what there is.
local consumer, events_max, bytes_max, shown, token = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]),
  ARGV[9]
local g, refused = opened()
if not g then return refused end
tick(g)
local consumers = see(g, consumer, bounds.consumers)
if consumers then
  save(g)
  return answer('consumers', consumers)
end
local leases, leased, full = {}, 0, 0
local function lease_told(position, entry)
  local body = ''
  if entry[REPLAYED] == 1 then body = unpack_entry(call('HGET', g.letters, text(position)))[6] end
  for _, value in ipairs({text(position), entry[ATTEMPTS], text(entry[SEQUENCE]), text(entry[AT]), entry[REPLAYED], body}) do
    leases[#leases + 1] = value
  end
end

local function take_in()
  local after, upto, room = tonumber(ARGV[11]), tonumber(ARGV[12]), bounds.window - call('HLEN', g.entries)
  -- A page that begins behind the frontier is of a host that does not know that the group was moved.
  if after > g.frontier or upto <= g.frontier then return end
  local replaying, taken = call('ZCARD', g.replaying) > 0, {}
  g.changed = true
  local filled = false
  for i = 13, #ARGV, 3 do
    local position = tonumber(ARGV[i])
    if position > g.frontier then
      if room <= 0 then
        filled = true
        break
      end
      g.frontier = position
      if not (replaying and call('HEXISTS', g.entries, ARGV[i]) == 1) then
        room = room - 1
        taken[#taken + 1], taken[#taken + 2] = ARGV[i], ARGV[i]
        insert(g, position, {ARGV[i + 2], 'W', 0, tonumber(ARGV[i + 1]), 0, '', '', 0, 0})
      end
    end
  end
  for from = 1, #taken, 2000 do
    call('ZADD', g.unfinished, unpack(taken, from, math.min(from + 1999, #taken)))
  end
  if not filled then g.frontier = math.max(g.frontier, upto) end
end

local function lease()
  local own, all = tonumber(call('HGET', g.flying, consumer) or 0), call('HLEN', g.held)
  if own >= bounds.own then return 'own', own end
  if all >= bounds.all then return 'all', all end
  local left = math.min(events_max, bounds.own - own, bounds.all - all)
  for _, name in ipairs(call('ZRANGE', g.ready, 0, left - 1)) do
    local position = tonumber(name)
    local entry = read(g, position)
    -- What the host has not seen yet it could not show.
    if entry[REPLAYED] == 1 or position <= shown then
      if leased > 0 and leased + entry[BYTES] > bytes_max then
        full = 1
        break
      end
      leased = leased + entry[BYTES]
      g.sequence, g.changed = g.sequence + 1, true
      entry[PHASE], entry[ATTEMPTS], entry[CONSUMER], entry[LIFE] = 'L', entry[ATTEMPTS] + 1, consumer, token
      entry[SEQUENCE], entry[AT] = g.sequence, now + g.options.lease_ms * 1000
      call('ZREM', g.ready, name)
      call('HSET', g.held, entry[KEY], name)
      call('ZADD', g.due, text(entry[AT]), name)
      write(g, position, entry)
      count(1)
      if entry[ATTEMPTS] > 1 then count(2) end
      lease_told(position, entry)
    end
  end
  if #leases > 0 then call('HINCRBY', g.flying, consumer, #leases / 6) end
end

local why, held
if g.stopped == 0 then
  if ARGV[10] == '1' then
    -- Its first answer may have got lost on the way.
    for _, name in ipairs(call('HVALS', g.held)) do
      local entry = read(g, tonumber(name))
      if entry[LIFE] == token then lease_told(tonumber(name), entry) end
    end
  end
  if #leases == 0 then
    take_in()
    why, held = lease()
  end
end
save(g)
if why then return answer(why, held) end
local due = call('ZRANGE', g.due, 0, 0, 'WITHSCORES')[2]
return answer('ok', text(g.frontier), math.max(bounds.window - call('HLEN', g.entries), 0), text(now), due or '',
  g.stopped, text(g.lost), text(g.lost_until), g.incarnation, leased, full, leases)
