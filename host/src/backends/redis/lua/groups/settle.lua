-- Acknowledges, refuses or renews leases, and takes back those that nobody has got.
--
-- ARGV: ..., group, and for each: a(ck), n(ack), r(enew) or b(ack), incarnation, token, position, sequence,
--       milliseconds or '', reason
-- Answers a list: for each a letter and a time: A(cknowledged), Y (it was before), T(ried again), D(ead letter), N (renewed),
-- B (taken back), or why not: X (the lease has ended), L(ost), U(nknown).
local g, refused = opened()
if not g then return refused end
tick(g)

-- The entry whose lease a receipt stands for, or why there is none.
local function find(incarnation, token, position, sequence)
  if incarnation ~= g.incarnation then return nil, 'U' end
  local entry, name = read(g, position), text(position)
  if entry then
    local mine = entry[SEQUENCE] == sequence and entry[LIFE] == token
    if mine and entry[PHASE] == 'L' then
      if entry[AT] > now then return entry end
      expire(g, position, entry)
    end
    return nil, 'X', mine and entry[PHASE] == 'T' and entry[AT]
  end
  if call('ZSCORE', g.lost_leases, name) then return nil, 'L' end
  if call('ZSCORE', g.dead, name) then return nil, 'X' end
  if position <= g.frontier then return nil, 'Y' end
  return nil, 'U'
end

local function backoff(attempts)
  return math.min(g.options.backoff_ms_min * 2 ^ (attempts - 1), g.options.backoff_ms_max)
end

local function one(what, incarnation, token, position, sequence, ms, reason)
  local entry, why, tried = find(incarnation, token, position, sequence)
  if not entry then
    -- The answer to the first time may have got lost.
    if what == 'n' and tried then return 'T', tried end
    if what == 'r' and why == 'Y' then why = 'X' end
    if why ~= 'Y' and what ~= 'b' then count(8) end
    return why, 0
  end
  g.changed = true
  see(g, entry[CONSUMER], math.huge)
  if what == 'a' then
    count(3)
    finish(g, position, entry)
    return 'A', 0
  elseif what == 'r' then
    entry[AT] = now + (tonumber(ms) or g.options.lease_ms) * 1000
    write(g, position, entry)
    call('ZADD', g.due, text(entry[AT]), text(position))
    return 'N', entry[AT]
  elseif what == 'b' then
    -- Its event could not be read: that was no attempt.
    entry[ATTEMPTS] = entry[ATTEMPTS] - 1
    release(g, position, entry)
    return 'B', 0
  end
  count(4)
  call('HSET', g.messages, text(position), reason)
  if entry[ATTEMPTS] < g.options.attempts_max then
    return 'T', try_again(g, position, entry, now + (tonumber(ms) or backoff(entry[ATTEMPTS])) * 1000)
  end
  local due = bury(g, position, entry, 'nacked')
  if due then return 'T', due end
  return 'D', 0
end

local settled = {}
for i = 5, #ARGV, 7 do
  local what, at = one(ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]), ARGV[i + 5],
    ARGV[i + 6])
  settled[#settled + 1], settled[#settled + 2] = what, text(at)
end
save(g)
return answer('ok', settled)
