-- Removes processes with all that they have.
--
-- ARGV: ..., what to do; remove: the process, its incarnation or '' for whichever it is; expire: a time, how many at most,
--       keys after which no more are begun with, plugins and tenants for which it is forgotten what they appended before
--       all that the log has
-- Answers {'ok', ..., incarnation or ''}; of expire {'ok', ..., those that were removed, 1 where there may be more}.

local function remove(name)
  local key = process_key(name)
  local of = call('HMGET', key, 'incarnation', 'names')
  if not of[1] then
    call('ZREM', P .. 'closed', name)
    return '', 0
  end
  tell('r', name, '', '0', of[1])
  local keys = {key}
  for channel in string.gmatch(of[2], '[^\n]+') do
    keys[#keys + 1], keys[#keys + 2] = log_key(name, channel), marks_key(name, channel)
  end
  -- What they hold is freed beside what the server does.
  for from = 1, #keys, 1000 do call('UNLINK', unpack(keys, from, math.min(from + 999, #keys))) end
  local tenant, plain = string.match(name, '^([^:]+):(.*)$')
  call('ZREM', P .. 'names:' .. tenant, plain)
  call('ZREM', P .. 'closed', name)
  call('HINCRBY', P .. 'meta', 'processes', -1)
  -- There is no -0.
  if #keys > 1 then call('HINCRBY', P .. 'meta', 'channels', -(#keys - 1) / 2) end
  return of[1], #keys
end

if ARGV[8] == 'remove' then
  if ARGV[10] ~= '' and call('HGET', process_key(ARGV[9]), 'incarnation') ~= ARGV[10] then return answer('ok', '') end
  local incarnation = remove(ARGV[9])
  return answer('ok', incarnation)
end

local trimmed = call('HGET', KEYS[2], 'trimmed') or '0'
for _, of in ipairs(call('HRANDFIELD', P .. 'carriers', ARGV[12])) do
  local carried = P .. 'carried:' .. of
  if call('HGET', P .. 'carriers', of) ~= epoch then
    call('UNLINK', carried)
  else
    call('ZREMRANGEBYSCORE', carried, '-inf', '(' .. trimmed)
  end
  if call('EXISTS', carried) == 0 then call('HDEL', P .. 'carriers', of) end
end

local found = call('ZRANGEBYSCORE', P .. 'closed', '-inf', '(' .. ARGV[9], 'LIMIT', 0, ARGV[10])
local removed, keys, more = {}, 0, #found == tonumber(ARGV[10])
for _, name in ipairs(found) do
  if keys >= tonumber(ARGV[11]) then
    more = true
    break
  end
  local incarnation, of = remove(name)
  keys = keys + of
  if incarnation ~= '' then removed[#removed + 1] = name end
end
return answer('ok', removed, more and 1 or 0)
